"""The page of a job of a sweep. It is short, because there may be hundreds, and is made only if the job has no page."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from makemore_pl.command_line import anywhere
from makemore_pl.report import run_story
from makemore_pl.report.run_directory import Run, is_run
from makemore_pl.report.section import Code, Note, Page, Section
from makemore_pl.report.wording import show

PAGE = "report.html"


def outdated(runs: Iterable[Run]) -> list[Run]:
    """The runs whose page is missing, or older than their files."""
    return [run for run in runs if is_run(run.directory) and _changed(run.directory) > _time(run.directory / PAGE)]


def short_page(run: Run, defaults: Mapping[str, Any] | None) -> Page:
    """The parts that are written quickly, and the command for the others."""
    page = run_story.run_page(run, defaults, short=True)
    more = Note("This page is short, because it was made along with those of many runs. A whole one takes its place by")
    whole = Section("All pictures", [more, Code(anywhere("report.py", os.path.abspath(run.directory)))])
    return Page(f"{page.title}: {run.job}", page.lead, [*page.sections, whole])


def links(runs: Sequence[Run], page_of: Callable[[Run], str]) -> Markup:
    """Links to the pages of the jobs of one setting, called by their seeds if these differ, else by their names."""
    seeds = [show(run.get("seed")) for run in runs]
    apart = len(set(seeds)) == len(seeds)
    names = [f"seed {seed}" if apart else run.job for run, seed in zip(runs, seeds, strict=True)]
    joined = Markup(", ").join(link(name, page_of(run)) for name, run in zip(names, runs, strict=True))
    return Markup('<span class="links">{}</span>').format(joined)


def link(name: str, address: str) -> Markup:
    """A link, or the name alone if the address is empty."""
    return Markup('<a href="{}">{}</a>').format(address, name) if address else Markup.escape(name)


def page_from(place: Path) -> Callable[[Run], str]:
    """A function from a job to the path of its page relative to this folder; the path is empty if it has no page."""

    def address(run: Run) -> str:
        path = run.directory / PAGE
        return quote(Path(os.path.relpath(path, place)).as_posix()) if path.is_file() else ""

    return address


def _changed(directory: Path) -> float:
    return max(
        _time(directory / name) for name in ("config.yaml", "metrics.json", "diagnostics.jsonl", "findings.json")
    )


def _time(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0
