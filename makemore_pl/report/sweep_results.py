"""The results of jobs that can be compared: a table of settings, maps over two settings, and curves of the loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from makemore_pl.figures import comparisons
from makemore_pl.figures.series import Floats, trailing_mean
from makemore_pl.report import evolution, health
from makemore_pl.report.heat_map_grid import grids, is_number
from makemore_pl.report.job_page import links
from makemore_pl.report.run_directory import Run
from makemore_pl.report.section import Block, Note, Picture, Pictures, Table
from makemore_pl.report.sweep_directory import Mean, Row
from makemore_pl.report.wording import number, show

MAPPED = {
    "val/loss": "val loss, nats",
    "activation_std": "activation_std, mean of the layers",
    "saturation": "saturation, mean of the layers",
    "activation_grad_std": "activation_grad_std, mean of the layers",
    "grad_data_ratio": "grad_data_ratio, mean of the weights",
    "update_data_ratio": "update_data_ratio at full lr, median of the weights",
    "batchnorm_mean_lag": "batchnorm_mean_lag, mean of the layers",
}
"""Quantity -> title of its map."""
SPANS = {
    "activation_std": (0.0, 1.0),
    "saturation": (0.0, 1.0),
    "update_data_ratio": (-5.0, -1.0),
    "batchnorm_mean_lag": (0.0, 3.0),
}
"""Numbers at which the colours of a map begin and end, the same in every sweep. The lecture's -3 is in the middle."""
LOSS_SPAN = 0.1, 1.0
"""The colours of a map of losses span at least and at most this many nats."""
LEVELS = 8
"""Curves are not coloured by a setting with more values than this."""


def results(settings: Sequence[Row], keys: Sequence[str], page_of: Callable[[Run], str]) -> list[Block]:
    """The table of settings, best first.

    Args:
        page_of: job -> path of its page relative to this one; empty if it has none.
    """
    vals = [row.metric("val/loss") for row in settings]
    if not any(val.n for val in vals):
        return [Note("No job has finished yet.", missing=True)]
    order = np.argsort([val.mean for val in vals], kind="stable")  # those without losses last
    settings, vals = [settings[place] for place in order], [vals[place] for place in order]
    table = []
    for row, val in zip(settings, vals, strict=True):
        losses = [(str(mean), mean.mean) for mean in (val, row.metric("train/loss"), row.metric("test/loss"))]
        rate = row.metric("steps_per_second").mean
        cells = [(show(value), value if is_number(value) else show(value)) for value in row.setting.values()]
        seeds = f"{val.n} of {len(row.runs)}"
        pace = f"{rate:,.0f}" if np.isfinite(rate) else "–"
        table.append([losses[0], *cells, (links(row.runs, page_of), ""), *losses[1:], (pace, rate), (seeds, val.n)])
    columns = ["val loss", *keys, "pages", "train loss", "test loss", "steps a second", "finished"]
    return [  # the loss first, for narrow screens
        Table("Mean ± standard deviation over the seeds", columns, table, sortable=True, best=0),
        Note(f"Lowest validation loss: {settings[0].label or 'the only setting'}. {_told_apart(settings, vals)}"),
    ]


def _told_apart(settings: Sequence[Row], vals: Sequence[Mean]) -> str:
    spread = vals[0].std
    if not np.isfinite(spread):
        return "It has one finished seed, so a small lead may be the luck of the draw: add seed=1,2,3."
    near = [row.label for row, val in zip(settings, vals, strict=True) if val.mean - vals[0].mean <= spread][1:]
    if not near:
        return "No other setting is within one standard deviation of its seeds."
    return f"Not told apart from it by these runs, for within one standard deviation of its seeds: {'; '.join(near)}."


def maps(settings: Sequence[Row], keys: Sequence[str], suffix: str) -> list[Block]:
    """A heat map of the losses, and of each diagnostic that was measured."""
    if not keys:
        return [Note("Only the seed was varied, so there is nothing to map.", missing=True)]
    combinations = math.prod(len({repr(row.setting[key]) for row in settings}) for key in keys)
    if len(settings) < combinations / 2:
        return [Note("Too few combinations of the settings were run for a map of them.", missing=True)]
    measured = {tag.partition("/")[0] for row in settings for run in row.runs for tag in run.diagnostics.values}
    pictures = []
    for name, title in MAPPED.items():
        if name != "val/loss" and name not in measured:
            continue
        panels, x_labels, y_labels, x_name, y_name = grids(settings, keys, partial(_mapped, name))
        panels = {label: grid for label, grid in panels.items() if np.isfinite(grid).any()}
        if not panels:
            continue
        loss = name == "val/loss"
        span, form = (_loss_span(panels), "{:.4g}") if loss else (SPANS.get(name), "{:.3g}")
        figure = comparisons.heat_map(panels, x_labels, y_labels, title, x_name, y_name, form, span)
        alt = _read_out(title, panels, x_labels, y_labels, x_name, y_name)
        pictures.append(Picture(f"map_{name.replace('/', '_')}{suffix}", figure, alt))
    return [
        Note("Diagnostics at the last watched step, if not said otherwise; a dash where none was measured."),
        Pictures(pictures),
    ]


def _mapped(quantity: str, row: Row) -> float:
    if quantity == "val/loss":
        return row.metric(quantity).mean
    if (
        quantity == "update_data_ratio"
    ):  # at full learning rate, as the doctor judges it, because it drops before the end
        return Mean.of(health.typical(run) for run in row.runs).mean
    return row.early(quantity, None).mean


def _loss_span(panels: Mapping[str, Floats]) -> tuple[float, float]:
    losses = np.concatenate([grid[np.isfinite(grid)] for grid in panels.values()])
    least, most = LOSS_SPAN
    return losses.min(), losses.min() + min(max(np.ptp(losses), least), most)


def _read_out(
    title: str, panels: Mapping[str, Floats], x_labels: list[str], y_labels: list[str], x_name: str, y_name: str
) -> str:
    rows_read = []
    for label, grid in panels.items():
        for y, values in zip(y_labels, grid, strict=True):
            where = " ".join(part for part in (label, f"{y_name}={y}" if y_name else "") if part)
            rows_read.append(f"{where}: {', '.join(number(value, 3) for value in values)}")
    return f"{title}, for {x_name} {', '.join(x_labels)}. {'; '.join(rows_read)}."


def curves(settings: Sequence[Row], suffix: str) -> list[Block]:
    curves = {row.label or "all seeds": _curve(row.runs) for row in settings}
    curves = {label: curve for label, curve in curves.items() if curve[0].size}
    if not curves:
        return [Note("Not measured in these jobs: the training loss (diagnostics.jsonl has none).", missing=True)]
    key = _colouring(settings)
    groups = {row.label or "all seeds": f"{key}={show(row.setting[key])}" if key else "all seeds" for row in settings}
    groups = {label: group for label, group in groups.items() if label in curves}
    finished = [row for row in settings if row.metric("val/loss").n and (row.label or "all seeds") in curves]
    best = [row.label or "all seeds" for row in sorted(finished, key=lambda row: row.metric("val/loss").mean)][:3]
    alt = f"Training loss of {len(curves)} settings; lowest validation loss: {', '.join(best)}."
    drops = {step for row in settings for run in row.runs for step in evolution.drops_of(run).tolist()}
    figure = comparisons.overlaid_curves(curves, "training loss, means over the seeds", "nats", groups, sorted(drops))
    hint = "A curve says its settings where the pointer rests on it." if len(curves) > 1 else ""
    return [Pictures([Picture(f"curves{suffix}", figure, alt, hint)])]


def _colouring(settings: Sequence[Row]) -> str:
    """The setting that decides a curve's colour: of those with few values, the one that changes the loss most."""
    best, widest = "", -1.0
    for key in settings[0].setting:
        by_level: dict[str, list[float]] = {}
        for row in settings:
            by_level.setdefault(show(row.setting[key]), []).append(row.metric("val/loss").mean)
        means = [Mean.of(losses).mean for losses in by_level.values()]
        width = float(np.nan_to_num(np.ptp(means)))
        if len(by_level) <= LEVELS and width > widest:
            best, widest = key, width
    return best


def _curve(runs: Sequence[Run]) -> tuple[Floats, Floats]:
    by_step: dict[int, list[float]] = {}
    for run in runs:
        steps, losses = run.diagnostics.tag("train/loss_mean")
        if not steps.size:
            steps, losses = run.diagnostics.tag("train/loss")
        for step, loss in zip(
            steps.tolist(), trailing_mean(steps, losses, evolution.drops_of(run)).tolist(), strict=True
        ):
            by_step.setdefault(step, []).append(loss)
    ordered = sorted(by_step)
    return np.array(ordered, dtype=np.float64), np.array([Mean.of(by_step[step]).mean for step in ordered])
