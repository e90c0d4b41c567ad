"""The page of two runs side by side, such as before and after a remedy."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from makemore_pl.figures import curves
from makemore_pl.figures.layer_names import in_order, spoken
from makemore_pl.report import evolution, health
from makemore_pl.report.command import differences
from makemore_pl.report.run_directory import Run
from makemore_pl.report.run_story import sentence, told_and_absent
from makemore_pl.report.section import Block, Note, Page, Picture, Pictures, Section, Table
from makemore_pl.report.sweep_directory import comparable
from makemore_pl.report.verdict import verdict
from makemore_pl.report.wording import count, from_to, listed, number, show, signed, significant

LOSS_NAMES = {
    "val/loss": "val loss",
    "train/loss": "train loss",
    "test/loss": "test loss",
    "initial_loss": "initial loss",
}
COUNTS = {"steps": "steps", "parameters": "parameters"}
UPDATES = {"update_data_ratio": "update:data, log10", "grad_data_ratio": "grad:data"}


def pair_page(first: Run, second: Run, place: Path | None = None) -> Page:
    """The page that compares two runs.

    Args:
        place: the folder of the page, by default the first run's directory.
    """
    runs = dict(zip(labels(first, second), (first, second), strict=True))
    judged = [block for label, run in runs.items() for block in verdict(run, place or first.directory, of=label)]
    sections = [
        Section("What differs", _what(runs)),
        *([Section("Verdicts", judged)] if judged else []),
        Section("Losses", _losses(runs)),
        Section("Step by step", evolution.step_by_step(runs)),
        Section("Layers", _layers(runs)),
        Section("Updates", _pairs("Weights: first watched step → last", runs, UPDATES)),
    ]
    told, absent = told_and_absent(sections)
    if absent:
        told.append(Section("Not measured", [Note(f"Neither run has anything on {listed(absent)}.")]))
    return Page(f"{' beside '.join(runs)}", _lead(runs), told)


def labels(first: Run, second: Run) -> tuple[str, str]:
    """Labels of the runs: their experiments if these differ, else their directories if these differ, else A and B."""
    for one, other in ((first.name, second.name), (first.directory.name, second.directory.name)):
        if one != other:
            return one.replace("$", "＄"), other.replace("$", "＄")  # matplotlib takes "$" for mathematics
    return "A", "B"


def _lead(runs: Mapping[str, Run]) -> str:
    """The section on what was changed and what that did."""
    (a, first), (b, second) = runs.items()
    changed = list(differences(second.config, first.config))
    one, other = (run.metrics.get("val/loss") for run in runs.values())
    sentences = [f"{b} differs from {a} in {listed(changed)}." if changed else "Both have the same settings."]
    if one is not None and other is not None:
        apart = _apart(runs)
        better = "better" if other < one else "worse"
        what = f", {number(abs(other - one))} {better}" if not apart and number(other) != number(one) else ""
        sentences.append(f"Its validation loss is {number(other)} instead of {number(one)}{what}.")
        if apart:
            sentences.append(f"Their {apart}, so the losses tell nothing of the other settings.")
    if all(run.diagnosis for run in runs.values()):
        found = (f"{listed(run.roots) if run.roots else 'nothing wrong'} in {label}" for label, run in runs.items())
        sentences.append(f"The doctor found {listed(found)}.")
    return " ".join(sentences)


def _apart(runs: Mapping[str, Run]) -> str:
    """Differences that make the losses incomparable, such as other words; empty if the runs can be compared."""
    groups = comparable(list(runs.values()))
    if len(groups) == 1:
        return ""
    keys = {part.partition("=")[0] for label in groups for part in label.split(", ")}
    return f"{listed(sorted(keys))} differ" + ("s" if len(keys) == 1 else "")


def _what(runs: Mapping[str, Run]) -> list[Block]:
    first, second = runs.values()
    differing = differences(second.config, first.config)
    told: list[Block] = [Note(f"{label}: {sentence(run)}") for label, run in runs.items()]
    if not differing:
        return told
    rows = [[key, show(theirs), show(ours)] for key, (ours, theirs) in differing.items()]
    return [Table("Settings that differ", ["setting", *runs], rows), *told]


def _losses(runs: Mapping[str, Run]) -> list[Block]:
    first, second = (run.metrics for run in runs.values())
    rows = []
    for key, name in (LOSS_NAMES | COUNTS).items():
        one, other = first.get(key), second.get(key)
        if one is None and other is None:
            continue
        apart = other - one if one is not None and other is not None else None
        told = count if key in COUNTS else number
        rows.append([name, told(one), told(other), count(apart, "+") if key in COUNTS else signed(apart)])
    blocks: list[Block] = []
    if rows:
        blocks.append(Table("Whole-split losses in nats, and what they took", ["", *runs, "difference"], rows))
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
    depth = []
    for quantity, title in (("activation_std", "spread of the activations"), ("activation_grad_std", "of gradients")):
        at_step_0 = {label: health.at(run, quantity, 0) for label, run in runs.items()}
        if all(len(by) >= health.DEEP for by in at_step_0.values()):
            told = "; ".join(f"{label} {', '.join(map(significant, by.values()))}" for label, by in at_step_0.items())
            figure = curves.over_depth(at_step_0, f"{title} over depth, step 0", "std")
            depth.append(Picture(f"{quantity}_over_depth", figure, f"{title} at step 0, from the first layer: {told}."))
    measured = {quantity for run in runs.values() for quantity in _measured(run, health.LAYER_QUANTITIES)}
    return [
        *([Pictures(depth)] if depth else []),
        *_pairs("Layers: first watched step → last", runs, health.LAYER_QUANTITIES),
        *health.explained(quantity for quantity in health.LAYER_QUANTITIES if quantity in measured),
    ]


def _measured(run: Run, quantities: Iterable[str]) -> list[str]:
    return [quantity for quantity in quantities if run.diagnostics.quantity(quantity)[1]]


def _pairs(caption: str, runs: Mapping[str, Run], quantities: Mapping[str, str]) -> list[Block]:
    """A row for each quantity of each layer or weight, a column for each run."""
    rows = []
    for quantity, title in quantities.items():
        by_run = [evolution.matrices(run.diagnostics.quantity(quantity)[1]) for run in runs.values()]
        names = in_order({name for by_name in by_run for name in by_name})
        rows += [[f"{title}, {spoken(name)}", *(from_to(by_name.get(name)) for by_name in by_run)] for name in names]
    what = caption.partition(":")[0].lower()
    return [Table(caption, ["", *runs], rows)] if rows else [evolution.missing(f"the {what}")]
