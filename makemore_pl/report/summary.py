"""Writes the summary of a sweep: summary.csv for programs, summary.md for people."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from makemore_pl.files import write_atomically
from makemore_pl.report import job_page
from makemore_pl.report.page import page_of, render, write_page
from makemore_pl.report.run_directory import Run
from makemore_pl.report.section import Picture
from makemore_pl.report.sweep_directory import (
    comparable,
    compared,
    correlations,
    failures,
    independent_keys,
    layer_mean,
    read_runs,
    rows,
    unfinished,
    varied_keys,
)
from makemore_pl.report.wording import number, show, significant

METRIC_COLUMNS = ("train/loss", "val/loss", "test/loss", "initial_loss", "steps", "stopped_by", "seconds")
DIAGNOSTIC_COLUMNS = (
    "saturation",
    "activation_std",
    "grad_data_ratio",
    "update_data_ratio",
    "activation_grad_std",
    "batchnorm_mean_lag",
    "batchnorm_gap",
)
LINKED = ("map_val_loss", "curves")
"""Figures that summary.md shows."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """A table of settings that can be compared, sorted by validation loss."""

    label: str
    """What these jobs have in common and others have not, such as the number of steps; empty if there are no others."""
    columns: list[str]
    cells: list[list[str]]
    best: str
    """The job with the lowest validation loss within the best setting; empty if no job is finished."""


def write_summary(directory: Path, defaults: Mapping[str, Any] | None = None) -> list[Ranking]:
    """Write summary.csv, summary.md, report.html and its figures into the sweep directory; returns the rankings.

    A job whose page is missing or out of date gets a short one.

    Args:
        defaults: the default config, for the pages of the jobs.

    Raises:
        ValueError: there are no jobs.
    """
    runs, lost = read_runs(directory)
    keys = varied_keys(runs)
    rankings = [_ranking(label, group) for label, group in comparable(runs).items()]
    write_atomically(directory / "summary.csv", _csv(runs, keys))
    for run in job_page.outdated(runs):
        write_atomically(run.directory / job_page.PAGE, render(job_page.short_page(run, defaults)))
    page = page_of(directory)
    write_page(page, directory / "report.html")
    pictures = [picture for picture in page.pictures() if picture.name in LINKED]
    failed = lost | {run.job: reason for run, reason in failures(runs)}
    write_atomically(directory / "summary.md", _markdown(directory.name, runs, keys, rankings, failed, pictures))
    return rankings


def _ranking(label: str, runs: Sequence[Run]) -> Ranking:
    settings = independent_keys(runs, varied_keys(runs))
    ordered = sorted(rows(runs, settings), key=lambda row: _or_last(row.metric("val/loss").mean))
    cells = []
    for row in ordered:
        val, train = row.metric("val/loss"), row.metric("train/loss")
        cells.append([*(show(value) for value in row.setting.values()), str(val), str(train), f"{val.n}"])
    finished = [run for run in ordered[0].runs if run.metrics.get("val/loss") is not None] if ordered else []
    best = min(finished, key=lambda run: _or_last(run.metrics["val/loss"]), default=None)
    columns = [*settings, "val loss", "train loss", "seeds"]
    if any(run.finding for run in runs):
        columns.append("finding")
        cells = [[*cell, ", ".join(_findings(row.runs))] for cell, row in zip(cells, ordered, strict=True)]
    return Ranking(label, columns, cells, best.job if best else "")


def _findings(runs: Sequence[Run]) -> list[str]:
    """The doctor's first finding in each run, without repetitions."""
    return list(dict.fromkeys(run.finding for run in runs if run.finding))


def _or_last(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


def _setting(run: Run, key: str) -> str:
    return show(rows([run], [key])[0].setting[key])


def _csv(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """A row for each job: varied settings, final losses, finding, first and last diagnostics (means over layers)."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ends = [(quantity, end) for quantity in DIAGNOSTIC_COLUMNS for end in ("first", "last")]
    writer.writerow(["job", *keys, *METRIC_COLUMNS, "finding", *(f"{quantity} {end}" for quantity, end in ends)])
    for run in runs:
        values = [layer_mean(run.diagnostics, quantity, 0 if end == "first" else None) for quantity, end in ends]
        numbers = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
        metrics = [run.metrics.get(key, "") for key in METRIC_COLUMNS]
        writer.writerow([run.job, *(_setting(run, key) for key in keys), *metrics, run.finding, *numbers])
    return file.getvalue()


def _markdown(
    name: str,
    runs: Sequence[Run],
    keys: Sequence[str],
    rankings: Sequence[Ranking],
    failed: Mapping[str, str],
    pictures: Sequence[Picture],
) -> str:
    lines = [f"# {_escaped(name)}", "", "Losses in nats over whole splits, mean ± standard deviation over the seeds."]
    for ranking in rankings:
        lines += ["", *([f"{_escaped(ranking.label)}:", ""] if ranking.label else [])]
        lines += _table(ranking.columns, ranking.cells)
    for picture in pictures:
        lines += ["", f"![{_escaped(picture.alt)}](figures/{picture.name}.png)"]
    lines += ["", "Every job, with the last value of its diagnostics (mean of the layers):", "", *_jobs(runs, keys)]
    if found := correlations(runs):
        lines += ["", "Rank correlation (Spearman) of a diagnostic's layer mean, read early, with the final val loss."]
        lines += [compared(found), ""]
        strongest = [
            [correlation.quantity, f"{correlation.step}", f"{correlation.rho:+.2f}", f"{correlation.n}"]
            for correlation in found[:12]
        ]
        lines += _table(["diagnostic", "step", "correlation", "jobs"], strongest)
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {_escaped(job)}: {_escaped(reason)}" for job, reason in failed.items()]
    if others := unfinished(runs):
        lines += ["", "Not finished:", ""]
        steps = [(run.job, run.diagnostics.last_step) for run in others]
        reached = ["" if step is None else f": last watched at step {step:,}" for _, step in steps]
        lines += [f"- {_escaped(job)}{end}" for (job, _), end in zip(steps, reached, strict=True)]
    return "\n".join(lines) + "\n"


def _jobs(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    last = {quantity: [layer_mean(run.diagnostics, quantity, None) for run in runs] for quantity in DIAGNOSTIC_COLUMNS}
    last = {quantity: values for quantity, values in last.items() if not all(map(math.isnan, values))}
    table = []
    for place, run in enumerate(runs):
        losses = [number(run.metrics.get(key)) for key in ("val/loss", "train/loss")]
        ends = ["–" if math.isnan(values[place]) else significant(values[place]) for values in last.values()]
        seconds = number(run.metrics.get("seconds"), 1)
        table.append([run.job, *(_setting(run, key) for key in keys), *losses, *ends, seconds])
    columns = ["job", *keys, "val loss", "train loss", *last, "seconds"]
    if any(run.diagnosis for run in runs):
        columns.append("finding")
        table = [[*row, run.finding] for row, run in zip(table, runs, strict=True)]
    if any(run.metrics.get("stopped_by") for run in runs):
        columns.append("stopped by")
        table = [[*row, str(run.metrics.get("stopped_by") or "")] for row, run in zip(table, runs, strict=True)]
    return _table(columns, table)


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(map(_escaped, row))} |" for row in (columns, *cells)]
    return [lines[0], f"|{' --- |' * len(columns)}", *lines[1:]]


def _escaped(text: str) -> str:
    """The text escaped for Markdown, in one line."""
    # an underscore within a word is no markup, so it is left as it is
    return re.sub(r"([\\`*\[\]<>|&~#!$]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
