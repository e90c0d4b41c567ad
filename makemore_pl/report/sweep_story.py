"""The page of a sweep: what was varied, which setting was best and by how much, and what predicted that early."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from makemore_pl.command_line import anywhere
from makemore_pl.report.command import placed
from makemore_pl.report.heat_map_grid import is_number
from makemore_pl.report.job_page import link, links, page_from
from makemore_pl.report.run_directory import Run, recorded
from makemore_pl.report.run_story import told_and_absent
from makemore_pl.report.section import Block, Code, Note, Page, Section, Table
from makemore_pl.report.sweep_directory import (
    EARLY_STEPS,
    FEWEST,
    comparable,
    compared,
    correlations,
    failures,
    independent_keys,
    read_runs,
    rows,
    unfinished,
    varied_keys,
)
from makemore_pl.report.sweep_results import curves, maps, results
from makemore_pl.report.wording import count, show, signed
from makemore_pl.stored_files import read_yaml
from makemore_pl.stored_form import at


def sweep_page(
    runs: Sequence[Run],
    name: str,
    command: Sequence[str] | None,
    lost: Mapping[str, str] | None = None,
    place: Path | None = None,
) -> Page:
    """The page of a sweep, or of runs that are only in the same folder.

    Args:
        command: what was typed after `scripts/train.py`; None if it is not known.
        lost: job -> reason of its failure, for jobs that are not among the runs.
        place: the folder of the page. Links to the pages of jobs are relative to it; without it there are none.
    """
    keys = independent_keys(runs, varied_keys(runs))
    failed, others, groups = failures(runs), unfinished(runs), comparable(runs)
    page_of = page_from(place) if place else lambda run: ""
    sections = [
        Section("What was varied", _what(runs, keys)),
        *_comparisons(groups, page_of),
        Section("What foretells the end", _foretelling(runs)),
        Section("Failures", _failures(failed, [*keys, "seed"], lost or {}, page_of)),
        *([Section("Not finished", _unfinished(others, [*keys, "seed"], page_of))] if others else []),
        Section("How to run it again" if command else "Versions", _again(command, runs)),
    ]
    jobs, finished = len(runs) + len(lost or {}), len(runs) - len(failed) - len(others)
    settings, seeds = len(rows(runs, keys)), len({show(run.get("seed")) for run in runs})
    lead = (
        f"{_several(jobs, 'job' if command else 'run')}, {finished} of them finished: "
        f"{_several(settings, 'setting')} of {', '.join(keys) or 'nothing'}, with {_several(seeds, 'seed')}."
    )
    if len(groups) > 1:
        lead += " Losses are compared only where steps and words are the same."
    told, left_out = told_and_absent(sections)
    if left_out:
        told.insert(-1, Section("Left out", [Note(" ".join(left_out))]))
    return Page(name, lead, told)


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _what(runs: Sequence[Run], keys: Sequence[str]) -> list[Block]:
    varied = varied_keys(runs)
    table = []
    for key in [*keys, *(key for key in varied if key not in keys)]:
        found = {show(run.get(key)): run.get(key) for run in runs}
        values = sorted(found, key=found.__getitem__) if all(map(is_number, found.values())) else list(found)
        free = key in keys or key == "seed"
        table.append([key, ", ".join(values), str(len(values)) if free else "follows from the ones above"])
    if not table:
        return [Note("Nothing was varied: all jobs have the same settings.", missing=True)]
    return [Table("Settings that differ between the jobs", ["setting", "values", "how many"], table)]


def _comparisons(groups: Mapping[str, Sequence[Run]], page_of: Callable[[Run], str]) -> list[Section]:
    """Results, maps and curves. If there are several groups, each group has its own."""
    sections, alone = [], []
    for place, (label, runs) in enumerate(groups.items()):
        keys = independent_keys(runs, varied_keys(runs))
        settings = rows(runs, keys)
        if len(groups) > 1 and len(settings) == 1:
            val = settings[0].metric("val/loss")
            alone.append([(str(val), val.mean), runs[0].name, label, (links(runs, page_of), "")])
            continue
        of, suffix = (f", {label}", f"_{place}" if place else "") if label else ("", "")
        sections.append(Section(f"Results{of}", results(settings, keys, page_of)))
        sections.append(Section(f"Maps{of}", maps(settings, keys, suffix)))
        sections.append(Section(f"Curves{of}", curves(settings, suffix)))
    if alone:
        note = Note("Nothing else has these steps and words, so these losses have nothing to be compared with.")
        table = Table("Single settings", ["val loss", "experiment", "steps and words", "pages"], alone)
        sections.append(Section("Alone", [note, table]))
    return sections


def _foretelling(runs: Sequence[Run]) -> list[Block]:
    found = correlations(runs)
    if not found:
        return [
            Note(
                f"Too few finished jobs to correlate: {FEWEST} are needed with diagnostics and equal steps, words and "
                "batch size. Jobs that differ in these have different losses anyway.",
                missing=True,
            )
        ]
    by: dict[str, dict[int, tuple[float, int]]] = {}
    for correlation in found:
        by.setdefault(correlation.quantity, {})[correlation.step] = correlation.rho, correlation.n
    table: list[list[Any]] = []
    for quantity, known in by.items():
        cells = [
            (signed(known[step][0], 2), known[step][0]) if step in known else ("–", float("nan"))
            for step in EARLY_STEPS
        ]
        table.append([quantity, *cells, str(max(n for _, n in known.values()))])
    columns = ["diagnostic, mean of layers", *(f"at step {step:,}" for step in EARLY_STEPS), "jobs"]
    return [
        Note(
            "Spearman's rank correlation with the final validation loss. +1: a higher value always went with a higher "
            "final loss; −1: with a lower one; 0: there is no such relation. Compare with train/loss: a diagnostic is "
            "useful if it predicts more, or earlier. These are correlations over these jobs, not causes. "
            + compared(found)
        ),
        Table("Early diagnostics and the final loss", columns, table, sortable=True),
    ]


def _failures(
    failed: Sequence[tuple[Run, str]], keys: Sequence[str], lost: Mapping[str, str], page_of: Callable[[Run], str]
) -> list[Block]:
    if not failed and not lost:
        return []
    table: list[list[Any]] = [[job, "not known", "–", words] for job, words in lost.items()]
    table += [[*_reached(run, keys, page_of), words] for run, words in failed]
    return [Table("Jobs that failed", ["job", "setting", "last step", "why"], table)]


def _unfinished(others: Sequence[Run], keys: Sequence[str], page_of: Callable[[Run], str]) -> list[Block]:
    table = [_reached(run, keys, page_of) for run in others]
    return [
        Note("These jobs run, or were interrupted: the same command resumes them."),
        Table("Jobs without final losses", ["job", "setting", "last step"], table),
    ]


def _reached(run: Run, keys: Sequence[str], page_of: Callable[[Run], str]) -> list[str]:
    setting = " ".join(f"{key}={show(run.get(key))}" for key in keys)
    return [link(run.job, page_of(run)), setting, count(run.diagnostics.last_step)]


def _again(command: Sequence[str] | None, runs: Sequence[Run]) -> list[Block]:
    blocks: list[Block] = [Code(anywhere("train.py", "-m", *placed(command, runs)))] if command else []
    if found := recorded(runs):
        blocks.append(Table("Versions of the jobs", ["package", "version"], found))
    return blocks


def sweep_page_of(directory: Path, place: Path | None = None) -> Page:
    """The page of a sweep directory, or of any folder with runs below it.

    Args:
        place: the folder of the page, by default the directory.

    Raises:
        ValueError: it is no sweep directory, or a file in it can't be read.
    """
    runs, lost = read_runs(directory)
    experiments = list(dict.fromkeys(run.name for run in runs))
    name = f"{', '.join(experiments[:4])}{' …' if len(experiments) > 4 else ''}"
    command = _command(directory)
    title = f"Sweep: {name or directory.name}" if command else f"Runs in {directory.resolve().name}"
    return sweep_page(runs, title, command, lost, place or directory)


def _command(directory: Path) -> list[str] | None:
    path = directory / "multirun.yaml"
    if not path.is_file():
        return None
    task = at(read_yaml(path, dict), "hydra.overrides.task")
    if not isinstance(task, list):
        return None
    return [str(override) for override in task if not str(override).startswith("hydra.")]
