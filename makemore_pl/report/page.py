"""Writes the page of a run or a sweep as one HTML file that loads nothing, and its figures as files."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from makemore_pl.figures.encoding import png
from makemore_pl.files import write_atomically
from makemore_pl.report import pair_story, run_story, sweep_story
from makemore_pl.report.run_directory import is_run, read_run
from makemore_pl.report.section import Page
from makemore_pl.report.sweep_directory import is_sweep


def page_of(
    directory: Path,
    defaults: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
    place: Path | None = None,
) -> Page:
    """The page of a run directory or a sweep directory.

    Args:
        defaults: the default config; with it the page lists the settings that the run changed.
        start: the config of the run's experiment without other overrides; with it the page can tell the command of a
            run whose overrides Hydra did not keep.
        place: the folder that the page is written to, by default the directory.

    Raises:
        ValueError: the directory is neither, or a file in it can't be read.
    """
    if is_run(directory):
        return run_story.run_page(read_run(directory), defaults, start, place)
    if is_sweep(directory):
        return sweep_story.sweep_page_of(directory, place)
    raise ValueError(
        f"{directory} is neither a run directory (it has no config.yaml) nor a sweep directory (no folder in it has)."
    )


def render(page: Page) -> str:
    """The page as HTML. Equal pages give equal text."""
    return _template().render(page=page)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("makemore_pl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def write_report(
    directory: Path,
    output: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
) -> Path:
    """Write report.html, by default into the directory, and figures/ beside it; returns the page's path.

    Raises:
        ValueError: as in `page_of`.
    """
    path = output or directory / "report.html"
    write_page(page_of(directory, defaults, start, path.parent), path)
    return path


def write_pair(first: Path, second: Path, output: Path) -> Path:
    """Write the page of two run directories side by side; returns its path.

    Raises:
        ValueError: one is no run directory, or a file of it can't be read.
    """
    write_atomically(output, render(pair_story.pair_page(read_run(first), read_run(second), output.parent)))
    return output


def write_page(page: Page, path: Path) -> None:
    """Write a page, and its figures into figures/ beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent / "figures"
    folder.mkdir(exist_ok=True)
    for picture in page.pictures():
        write_atomically(folder / f"{picture.name}.svg", picture.svg)
        write_atomically(folder / f"{picture.name}.png", png(picture.figure))
    write_atomically(path, render(page))
