"""The page of a sweep: what was varied, which setting was best and by how much, and what predicted that early."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from makemore_pl import command_line
from makemore_pl.figures import comparisons
from makemore_pl.figures.series import Floats, trailing_mean
from makemore_pl.report import evolution
from makemore_pl.report.heat_map_grid import grids, is_number
from makemore_pl.report.run_directory import Run, read_yaml, recorded
from makemore_pl.report.run_story import told_and_absent
from makemore_pl.report.section import Block, Code, Note, Page, Picture, Pictures, Section, Table
from makemore_pl.report.sweep_directory import (
    EARLY,
    FEWEST,
    Mean,
    Row,
    comparable,
    compared,
    correlations,
    failures,
    independent_keys,
    lost_jobs,
    read_runs,
    rows,
    unfinished,
    varied_keys,
)
from makemore_pl.report.wording import number, show, signed

MAPPED = {
    "activation_std": "activation_std, mean of the layers",
    "saturation": "saturation, mean of the layers",
    "activation_grad_std": "activation_grad_std, mean of the layers",
    "grad_data_ratio": "grad_data_ratio, mean of the weights",
    "update_data_ratio": "update_data_ratio, mean of the weights",
    "batchnorm_mean_lag": "batchnorm_mean_lag, mean of the layers",
}
"""Diagnostics that get a map, with its title. The maps show them at the last watched step."""
SPANS = {
    "activation_std": (0.0, 1.0),
    "saturation": (0.0, 1.0),
    "update_data_ratio": (-5.0, -1.0),
    "batchnorm_mean_lag": (0.0, 3.0),
}
"""Numbers at which the colours of a map begin and end. They are the same in every sweep, so that maps of different
sweeps can be compared; that of the ratio has the lecture's -3 in its middle."""
LOSS_SPAN = 0.1, 1.0
"""The colours of a map of losses span at least and at most this many nats."""
LEVELS = 8
"""Curves are not coloured by a setting with more values than this."""


def tell(runs: Sequence[Run], name: str, command: Sequence[str] | None, lost: Mapping[str, str] | None = None) -> Page:
    """The page of a sweep.

    Args:
        command: what was typed after `scripts/train.py`; None if it is not known.
        lost: job -> reason of its failure, for jobs that are not among the runs.
    """
    keys = independent_keys(runs, varied_keys(runs))
    settings = rows(runs, keys)
    failed, others = failures(runs), unfinished(runs)
    sections = [
        Section("What was swept", _what(runs, keys)),
        *_comparisons(comparable(runs)),
        Section("What foretells the end", _foretelling(runs)),
        Section("Failures", _failures(failed, [*keys, "seed"], lost or {})),
        *([Section("Not finished", _unfinished(others, [*keys, "seed"]))] if others else []),
        Section("How to run it again", _again(command, runs)),
    ]
    jobs, finished = len(runs) + len(lost or {}), len(runs) - len(failed) - len(others)
    seeds = {run.config.get("seed") for run in runs}
    lead = (
        f"{jobs} {'job' if jobs == 1 else 'jobs'}, {finished} of them finished: {len(settings)} "
        f"{'setting' if len(settings) == 1 else 'settings'} of {', '.join(keys) or 'nothing'}, "
        f"with {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}."
    )
    told, left_out = told_and_absent(sections)
    if left_out:
        told.insert(-1, Section("Left out", [Note(" ".join(left_out))]))
    return Page(name, lead, told)


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


def _comparisons(groups: Mapping[str, Sequence[Run]]) -> list[Section]:
    """Results, maps and curves. If there are several groups, each group has its own."""
    sections = []
    for place, (label, runs) in enumerate(groups.items()):
        keys = independent_keys(runs, varied_keys(runs))
        settings = rows(runs, keys)
        of, suffix = (f", {label}", f"_{place}" if place else "") if label else ("", "")
        sections.append(Section(f"Results{of}", _results(settings, keys)))
        if len(settings) > 1 or len(groups) == 1:
            sections.append(Section(f"Maps{of}", _maps(settings, keys, suffix)))
            sections.append(Section(f"Curves{of}", _curves(settings, suffix)))
    return sections


def _results(settings: Sequence[Row], keys: Sequence[str]) -> list[Block]:
    vals = [row.metric("val/loss") for row in settings]
    if not any(val.n for val in vals):
        return [Note("No job has finished yet.", missing=True)]
    order = np.argsort([val.mean for val in vals], kind="stable")  # settings without losses come last
    settings, vals = [settings[place] for place in order], [vals[place] for place in order]
    table = []
    for row, val in zip(settings, vals, strict=True):
        losses = [_cell(each) for each in (val, row.metric("train/loss"), row.metric("test/loss"))]
        rate = row.metric("steps_per_second").mean
        cells = [(show(value), value if is_number(value) else show(value)) for value in row.setting.values()]
        seeds = f"{val.n} of {len(row.runs)}"
        pace = f"{rate:,.0f}" if np.isfinite(rate) else "–"
        table.append([losses[0], *cells, *losses[1:], (pace, rate), (seeds, val.n)])
    columns = [
        "val loss",
        *keys,
        "train loss",
        "test loss",
        "steps a second",
        "finished",
    ]  # narrow screens cut the right
    blocks: list[Block] = [Table("Mean ± standard deviation over the seeds", columns, table, sortable=True, best=0)]
    blocks.append(
        Note(f"Lowest validation loss: {settings[0].label or 'the only setting'}. {_told_apart(settings, vals)}")
    )
    return blocks


def _told_apart(settings: Sequence[Row], vals: Sequence[Mean]) -> str:
    spread = vals[0].std
    if not np.isfinite(spread):
        return "It has only one finished seed, so a small difference may be chance: add seed=1,2,3."
    near = [row.label for row, val in zip(settings, vals, strict=True) if val.mean - vals[0].mean <= spread][1:]
    if not near:
        return "No other setting is within one standard deviation of its seeds."
    return f"These settings are within one standard deviation of its seeds, so they may be as good: {'; '.join(near)}."


def _cell(value: Mean) -> tuple[str, float]:
    spread = f" ± {value.std:.4f}" if np.isfinite(value.std) else ""
    return f"{number(value.mean)}{spread}", value.mean


def _maps(settings: Sequence[Row], keys: Sequence[str], suffix: str) -> list[Block]:
    if not keys:
        return [Note("Only the seed was varied, so there is nothing to map.", missing=True)]
    measured = {tag.partition("/")[0] for row in settings for run in row.runs for tag in run.diagnostics.values}
    values: dict[str, tuple[str, str, Callable[[Row], float]]] = {
        "val_loss": ("val loss, nats", "{:.3f}", lambda row: row.metric("val/loss").mean)
    }
    for quantity, title in MAPPED.items():
        if quantity in measured:
            values[quantity] = (title, "{:.3g}", lambda row, q=quantity: row.early(q, None).mean)  # type: ignore[misc]
    pictures = []
    for name, (title, form, value) in values.items():
        panels, x_labels, y_labels, x_name, y_name = grids(settings, keys, value)
        panels = {label: grid for label, grid in panels.items() if np.isfinite(grid).any()}
        if not panels:
            continue
        span = SPANS.get(name) if name != "val_loss" else _loss_span(panels)
        figure = comparisons.heat_map(panels, x_labels, y_labels, title, x_name, y_name, form, span)
        pictures.append(
            Picture(f"map_{name}{suffix}", figure, _read_out(title, panels, x_labels, y_labels, x_name, y_name))
        )
    return [
        Note("Diagnostics at the last watched step; a dash where no job finished or measured it."),
        Pictures(pictures),
    ]


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


def _curves(settings: Sequence[Row], suffix: str) -> list[Block]:
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
        means = [Mean.of(each).mean for each in by_level.values()]
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
    for each in found:
        by.setdefault(each.quantity, {})[each.step] = each.rho, each.n
    table: list[list[Any]] = []
    for quantity, at in by.items():
        cells = [(signed(at[step][0], 2), at[step][0]) if step in at else ("–", float("nan")) for step in EARLY]
        table.append([quantity, *cells, str(max(n for _, n in at.values()))])
    columns = ["diagnostic, mean of layers", *(f"at step {step:,}" for step in EARLY), "jobs"]
    return [
        Note(
            "Spearman's rank correlation with the final validation loss. +1: a higher value always went with a higher "
            "final loss; −1: with a lower one; 0: there is no such relation. Compare with train/loss: a diagnostic is "
            "useful if it predicts more, or earlier. These are correlations over these jobs, not causes. "
            + compared(found)
        ),
        Table("Early diagnostics and the final loss", columns, table, sortable=True),
    ]


def _failures(failed: Sequence[tuple[Run, str]], keys: Sequence[str], lost: Mapping[str, str]) -> list[Block]:
    if not failed and not lost:
        return []
    table = [[job, "refused before it had a config", "–", words] for job, words in lost.items()]
    table += [[*_reached(run, keys), words] for run, words in failed]
    return [Table("Jobs that failed", ["job", "setting", "last step", "why"], table)]


def _unfinished(others: Sequence[Run], keys: Sequence[str]) -> list[Block]:
    note = Note("These jobs run, or were interrupted: the same command resumes them.")
    return [
        note,
        Table("Jobs without final losses", ["job", "setting", "last step"], [_reached(r, keys) for r in others]),
    ]


def _reached(run: Run, keys: Sequence[str]) -> list[str]:
    step = run.diagnostics.last_step
    setting = " ".join(f"{key}={show(run.get(key))}" for key in keys)
    return [run.directory.name, setting, "–" if step is None else f"{step:,}"]


def _again(command: Sequence[str] | None, runs: Sequence[Run]) -> list[Block]:
    blocks: list[Block] = [
        Note("The sweep did not record its command (multirun.yaml).", missing=True)
        if command is None
        else Code(command_line.command("train.py", "-m", *command))
    ]
    if rows := recorded(runs):
        blocks.append(Table("Versions of the jobs", ["package", "version"], rows))
    return blocks


def tell_directory(directory: Path) -> Page:
    """The page of a sweep directory.

    Raises:
        ValueError: it is no sweep directory, or a file in it can't be read.
    """
    runs = read_runs(directory)
    experiments = list(dict.fromkeys(run.name for run in runs))
    name = f"{', '.join(experiments[:4])}{' …' if len(experiments) > 4 else ''}" or directory.name
    return tell(runs, f"Sweep: {name}", _command(directory), lost_jobs(directory))


def _command(directory: Path) -> list[str] | None:
    path = directory / "multirun.yaml"
    if not path.is_file():
        return None
    task = read_yaml(path, dict).get("hydra", {}).get("overrides", {}).get("task")
    return [str(each) for each in task if not str(each).startswith("hydra.")] if isinstance(task, list) else None
