"""A sweep in two files: summary.csv for programs, summary.md for people."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from makemore_pl.files import write_atomically
from makemore_pl.report.page import write_report
from makemore_pl.report.run import Run
from makemore_pl.report.sweep import (
    Mean,
    correlations,
    independent_keys,
    layer_mean,
    read_runs,
    rows,
    varied_keys,
)
from makemore_pl.report.wording import number, show

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


def write_summary(directory: Path) -> Path:
    """Write summary.csv, summary.md, report.html and its figures into the sweep directory; returns summary.md's path.

    Raises:
        ValueError: where there are no jobs.
    """
    runs = read_runs(directory)
    keys = varied_keys(runs)
    write_atomically(directory / "summary.csv", _csv(runs, keys))
    write_atomically(directory / "summary.md", _markdown(directory.name, runs, keys, failed_jobs(directory)))
    write_report(directory)
    return directory / "summary.md"


def failed_jobs(directory: Path) -> dict[str, str]:
    """Why jobs failed, by job: the reasons in their failure.json."""
    return {
        path.parent.name: json.loads(path.read_text())["reason"] for path in sorted(directory.glob("*/failure.json"))
    }


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


def _markdown(name: str, runs: Sequence[Run], keys: Sequence[str], failures: dict[str, str]) -> str:
    settings = independent_keys(runs, [key for key in keys if key != "seed"])
    lines = [f"# {name}", "", "Losses in nats over whole splits, mean ± standard deviation over the seeds.", ""]
    lines += [f"| {' | '.join([*settings, 'val loss', 'train loss', 'seeds'])} |", "|---" * (len(settings) + 3) + "|"]
    ordered = sorted(
        rows(runs, settings), key=lambda row: (math.isnan(row.metric("val/loss").mean), row.metric("val/loss").mean)
    )
    for row in ordered:
        val, train = row.metric("val/loss"), row.metric("train/loss")
        cells = [*(show(value) for value in row.setting.values()), _spread(val), _spread(train), f"{val.n}"]
        lines.append(f"| {' | '.join(cells)} |")
    if found := correlations(runs):
        lines += [
            "",
            "Rank correlation (Spearman) of a diagnostic's layer mean, read early, with the final val loss:",
            "",
        ]
        lines += ["| diagnostic | step | correlation | jobs |", "|---|---|---|---|"]
        lines += [f"| {each.quantity} | {each.step} | {each.rho:+.2f} | {each.n} |" for each in found[:12]]
    if failures:
        lines += ["", "Failed:", ""]
        lines += [f"- {job}: {reason}" for job, reason in failures.items()]
    return "\n".join(lines) + "\n"


def _spread(value: Mean) -> str:
    return number(value.mean) + (f" ± {value.std:.4f}" if math.isfinite(value.std) else "")
