"""A sweep in two files: summary.csv for programs, summary.md for people."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from makemore_pl.files import write_atomically
from makemore_pl.report.page import tell, write_page
from makemore_pl.report.run_directory import Run
from makemore_pl.report.section import Picture
from makemore_pl.report.sweep_directory import (
    Mean,
    compared,
    correlations,
    failures,
    independent_keys,
    layer_mean,
    lost_jobs,
    read_runs,
    rows,
    unfinished,
    varied_keys,
)
from makemore_pl.report.wording import number, show, significant

METRICS = ("train/loss", "val/loss", "test/loss", "initial_loss", "steps", "seconds")
DIAGNOSTICS = (
    "saturation",
    "activation_std",
    "grad_data_ratio",
    "update_data_ratio",
    "activation_grad_std",
    "batchnorm_mean_lag",
    "batchnorm_gap",
)
FIRST = 0
LINKED = ("map_val_loss", "curves")
"""Figures that summary.md shows."""


def write_summary(directory: Path) -> Path:
    """Write summary.csv, summary.md, report.html and its figures into the sweep directory; returns summary.md's path.

    Raises:
        ValueError: where there are no jobs.
    """
    runs = read_runs(directory)
    keys = varied_keys(runs)
    write_atomically(directory / "summary.csv", _csv(runs, keys))
    page = tell(directory)
    write_page(page, directory / "report.html")
    pictures = [picture for picture in page.pictures() if picture.name in LINKED]
    failed = lost_jobs(directory) | {run.directory.name: reason for run, reason in failures(runs)}
    write_atomically(directory / "summary.md", _markdown(directory.name, runs, keys, failed, pictures))
    return directory / "summary.md"


def _setting(run: Run, key: str) -> str:
    return show(rows([run], [key])[0].setting[key])


def _csv(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """A row a job: what varied, final losses, first and last layer mean of the main diagnostics, seconds."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ends = [(quantity, end) for quantity in DIAGNOSTICS for end in ("first", "last")]
    writer.writerow(["job", *keys, *METRICS, *(f"{quantity} {end}" for quantity, end in ends)])
    for run in runs:
        values = [layer_mean(run.diagnostics, quantity, FIRST if end == "first" else None) for quantity, end in ends]
        numbers = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
        metrics = [run.metrics.get(key, "") for key in METRICS]
        writer.writerow([run.directory.name, *(_setting(run, key) for key in keys), *metrics, *numbers])
    return file.getvalue()


def _markdown(
    name: str, runs: Sequence[Run], keys: Sequence[str], failed: Mapping[str, str], pictures: Sequence[Picture]
) -> str:
    settings = independent_keys(runs, [key for key in keys if key != "seed"])
    ordered = sorted(
        rows(runs, settings), key=lambda row: (math.isnan(row.metric("val/loss").mean), row.metric("val/loss").mean)
    )
    means = []
    for row in ordered:
        val, train = row.metric("val/loss"), row.metric("train/loss")
        means.append([*(show(value) for value in row.setting.values()), _spread(val), _spread(train), f"{val.n}"])
    lines = [f"# {name}", "", "Losses in nats over whole splits, mean ± standard deviation over the seeds.", ""]
    lines += _table([*settings, "val loss", "train loss", "seeds"], means)
    for picture in pictures:
        lines += ["", f"![{_escaped(picture.alt)}](figures/{picture.name}.png)"]
    lines += ["", "Every job, with the last value of its diagnostics (mean of the layers):", "", *_jobs(runs, keys)]
    if found := correlations(runs):
        lines += ["", "Rank correlation (Spearman) of a diagnostic's layer mean, read early, with the final val loss."]
        lines += [compared(found), ""]
        strongest = [[each.quantity, f"{each.step}", f"{each.rho:+.2f}", f"{each.n}"] for each in found[:12]]
        lines += _table(["diagnostic", "step", "correlation", "jobs"], strongest)
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {job}: {reason}" for job, reason in failed.items()]
    if others := unfinished(runs):
        lines += ["", "Not finished:", ""]
        steps = [(run.directory.name, run.diagnostics.last_step) for run in others]
        lines += [f"- {job}" if step is None else f"- {job}: last watched at step {step:,}" for job, step in steps]
    return "\n".join(lines) + "\n"


def _jobs(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    last = {quantity: [layer_mean(run.diagnostics, quantity, None) for run in runs] for quantity in DIAGNOSTICS}
    last = {quantity: values for quantity, values in last.items() if not all(map(math.isnan, values))}
    table = []
    for place, run in enumerate(runs):
        losses = [number(run.metrics.get(key)) for key in ("val/loss", "train/loss")]
        ends = ["–" if math.isnan(values[place]) else significant(values[place]) for values in last.values()]
        seconds = number(run.metrics.get("seconds"), 1)
        table.append([run.directory.name, *(_setting(run, key) for key in keys), *losses, *ends, seconds])
    return _table(["job", *keys, "val loss", "train loss", *last, "seconds"], table)


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(map(_escaped, row))} |" for row in (columns, ["---"] * len(columns), *cells)]


def _escaped(text: str) -> str:
    return re.sub(r"([\\|\[\]])", r"\\\1", text)


def _spread(value: Mean) -> str:
    return number(value.mean) + (f" ± {value.std:.4f}" if math.isfinite(value.std) else "")
