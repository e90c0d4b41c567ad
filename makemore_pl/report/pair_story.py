"""The page of two runs side by side, such as before and after a remedy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from makemore_pl.figures import curves
from makemore_pl.figures.canvas import in_order, spoken
from makemore_pl.report import evolution, health
from makemore_pl.report.command import differences
from makemore_pl.report.run_directory import Run
from makemore_pl.report.run_story import sentence, told_and_absent
from makemore_pl.report.section import Block, Note, Page, Picture, Pictures, Section, Table
from makemore_pl.report.wording import from_to, listed, number, show, signed, significant

LOSSES = {
    "val/loss": "val loss",
    "train/loss": "train loss",
    "test/loss": "test loss",
    "initial_loss": "initial loss",
    "steps": "steps",
    "parameters": "parameters",
}


def tell(first: Run, second: Run) -> Page:
    """The page that compares two runs."""
    runs = dict(zip(labels(first, second), (first, second), strict=True))
    sections = [
        Section("What differs", _what(runs)),
        Section("Losses", _losses(runs)),
        Section("Step by step", evolution.step_by_step(runs)),
        Section("Layers", _layers(runs)),
        Section("Updates", _updates(runs)),
    ]
    told, absent = told_and_absent(sections)
    if absent:
        told.append(Section("Not measured", [Note(f"Neither run has anything on {listed(absent)}.")]))
    a, b = runs
    return Page(f"{a} beside {b}", f"{a}: {sentence(first)} {b}: {sentence(second)}", told)


def labels(first: Run, second: Run) -> tuple[str, str]:
    """Labels of the runs: their experiments if these differ, else their directories if these differ, else A and B."""
    for one, other in ((first.name, second.name), (first.directory.name, second.directory.name)):
        if one != other:
            return one.replace("$", "＄"), other.replace("$", "＄")  # matplotlib takes "$" for mathematics
    return "A", "B"


def _what(runs: Mapping[str, Run]) -> list[Block]:
    first, second = runs.values()
    differing = differences(second.config, first.config)
    if not differing:
        return [Note("Both have the same settings.")]
    rows = [[key, show(theirs), show(ours)] for key, (ours, theirs) in differing.items()]
    return [Table("Settings that differ", ["setting", *runs], rows)]


def _losses(runs: Mapping[str, Run]) -> list[Block]:
    first, second = (run.metrics for run in runs.values())
    rows = []
    for key, name in LOSSES.items():
        one, other = first.get(key), second.get(key)
        if one is None and other is None:
            continue
        digits = 0 if key in ("steps", "parameters") else 4
        difference = signed(other - one, digits) if one is not None and other is not None else "–"
        rows.append([name, *(number(each, digits) for each in (one, other)), difference])
    blocks: list[Block] = [Table("Whole-split losses in nats", ["", *runs, "difference"], rows)] if rows else []
    if curves_of := {
        f"{label}, {name}": run.diagnostics.tag(tag)
        for label, run in runs.items()
        for name, tag in (("train mean", "train/loss_mean"), ("val", "val/loss"))
        if run.diagnostics.tag(tag)[0].size
    }:
        ends = "; ".join(f"{label} {number(values[-1])}" for label, (_, values) in curves_of.items())
        drops = np.unique(np.concatenate([evolution.drops_of(run) for run in runs.values()]))
        pictures = [
            Picture(f"losses{name}", curves.losses(curves_of, list(runs), log, drops), f"Losses in the end: {ends}.")
            for name, log in (("_beginning", True), ("", False))
        ]
        blocks.append(Pictures(pictures))
    return blocks or [evolution.missing("losses")]


def _layers(runs: Mapping[str, Run]) -> list[Block]:
    blocks: list[Block] = []
    depth = []
    for quantity, title in (("activation_std", "spread of the activations"), ("activation_grad_std", "of gradients")):
        at_step_0 = {label: health.at(run, quantity, 0) for label, run in runs.items()}
        if all(len(by) >= health.DEEP for by in at_step_0.values()):
            told = "; ".join(f"{label} {', '.join(map(significant, by.values()))}" for label, by in at_step_0.items())
            figure = curves.over_depth(at_step_0, f"{title} over depth, step 0", "std")
            depth.append(Picture(f"{quantity}_over_depth", figure, f"{title} at step 0, from the first layer: {told}."))
    if depth:
        blocks.append(Pictures(depth))
    columns, by_layer = _pairs(runs, health.LAYER_QUANTITIES)
    if by_layer:
        blocks.append(Table("Layers: first watched step → last", ["layer", *columns], by_layer))
    return blocks or [evolution.missing("the layers")]


def _updates(runs: Mapping[str, Run]) -> list[Block]:
    quantities = {"update_data_ratio": "update:data, log10", "grad_data_ratio": "grad:data"}
    columns, rows = _pairs(runs, quantities, only_matrices=True)
    if not rows:
        return [evolution.missing("updates")]
    return [Table("Weights: first watched step → last", ["weight", *columns], rows)]


def _pairs(
    runs: Mapping[str, Run], quantities: Mapping[str, str], only_matrices: bool = False
) -> tuple[Sequence[str], list[list[Any]]]:
    """Columns and rows of a table: a row for each layer or weight, and for each quantity one column for each run."""
    columns, cells = [], []
    for quantity, title in quantities.items():
        measured = {label: run.diagnostics.quantity(quantity)[1] for label, run in runs.items()}
        if only_matrices:
            measured = {label: evolution.matrices(each) for label, each in measured.items()}
        if any(measured.values()):
            columns += [f"{title}, {label}" for label in runs]
            cells += list(measured.values())
    names = in_order({name for each in cells for name in each})
    return columns, [[spoken(name), *(from_to(each.get(name)) for each in cells)] for name in names]
