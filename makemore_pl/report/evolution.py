"""How a run went: its losses, and the lecture's four pictures from step to step."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from makemore_pl.figures import lecture_pictures
from makemore_pl.figures.series import Floats, running_mean
from makemore_pl.report.run_directory import Run
from makemore_pl.report.section import Block, Frame, Frames, Note, Picture, Pictures
from makemore_pl.report.wording import ends

FRAMES = 9
"""At most, of a slider."""
KEY_FRAMES = 4
"""Shown where there is no slider."""
DISTRIBUTIONS = {
    "activations": ("activations", "activation"),
    "activation_grads": ("activation gradients", "activation gradient"),
    "weight_grads": ("weight gradients", "weight gradient"),
}


def loss(run: Run) -> list[Block]:
    steps, train = run.diagnostics.tag("train/loss")
    if not steps.size:
        return [missing("the training loss", run)]
    val_steps, val = run.diagnostics.tag("val/loss")
    mean_steps, mean = run.diagnostics.tag("train/loss_mean")
    mean = mean if np.array_equal(mean_steps, steps) else running_mean(steps, train)
    baselines = {
        name: float(each[-1]) for name, each in run.diagnostics.quantity("baseline")[1].items() if np.isfinite(each[-1])
    }
    alt = f"Training loss from {train[0]:.2f} nats at step {steps[0]:,} to {mean[-1]:.2f} at step {steps[-1]:,}."
    if val.size:
        alt += f" Validation loss {val[-1]:.4f} at step {val_steps[-1]:,}."
    pictures = [
        Picture(name, lecture_pictures.loss_curve(steps, train, val_steps, val, baselines, log, mean), alt)
        for name, log in (("loss_beginning", True), ("loss", False))
    ]
    blocks: list[Block] = [Pictures(pictures)]
    _, passed = run.diagnostics.quantity("baseline_passed")
    if passed:
        listed = ", ".join(f"{name} at step {int(np.nanmax(each)):,}" for name, each in passed.items())
        blocks.append(Note(f"The baselines need no network; its mean training loss passed {listed}."))
    elif baselines:
        blocks.append(Note("The baselines need no network: all characters alike, their frequency, pairs' frequency."))
    return blocks


def four_pictures(run: Run) -> list[Block]:
    steps = chosen(run.diagnostics.histograms, FRAMES)
    if not steps:
        return [missing("histograms", run)]
    pictures: dict[int, list[Picture]] = {}
    absent = [title for kind, (title, _) in DISTRIBUTIONS.items() if not any(_group(run, kind, s) for s in steps)]
    update_steps, updates = run.diagnostics.quantity("update_data_ratio")
    heights = lecture_pictures.update_ratios(update_steps, matrices(updates)).axes[0].get_ylim()
    for step in steps:
        shown = []
        for kind, (title, label) in DISTRIBUTIONS.items():
            if histograms := _group(run, kind, step):
                alt = f"Density of {title} at step {step:,}, a line for each of {', '.join(histograms)}."
                figure = lecture_pictures.distributions(histograms, title, label)
                shown.append(Picture(f"{kind}-{step}", figure, alt, kept=False))
        until = update_steps <= step
        if weights := {name: each[until] for name, each in matrices(updates).items() if until.any()}:
            figure = lecture_pictures.update_ratios(update_steps[until], weights, last=float(update_steps[-1]))
            figure.axes[0].set_ylim(*heights)  # so that the frames do not jump
            alt = f"Update to data ratios up to step {step:,}: {ends(update_steps[until], weights)}"
            shown.append(Picture(f"update_data_ratio-{step}", figure, alt, kept=False))
        pictures[step] = shown
    blocks: list[Block] = [
        Note(
            "Healthy: activations alike in every layer and few at ±1; gradients alike in every layer, neither "
            "shrinking nor growing towards the first; update:data ratios inside the band."
        ),
        frames_of("The four pictures", steps, pictures),
    ]
    if absent:
        blocks.append(Note(f"Not measured in this run: {', '.join(absent)}.", missing=True))
    return blocks


def last_four_pictures(run: Run) -> list[Picture]:
    steps = run.diagnostics.histograms
    update_steps, updates = run.diagnostics.quantity("update_data_ratio")
    kept = []
    for step in sorted({min(steps), max(steps)}) if steps else []:
        until = update_steps <= step
        activations, activation_grads, weight_grads = (_group(run, kind, step) for kind in DISTRIBUTIONS)
        figure = lecture_pictures.four_pictures(
            activations,
            activation_grads,
            weight_grads,
            update_steps[until],
            {name: each[until] for name, each in matrices(updates).items()},
            f"step {step:,}",
        )
        kept.append(Picture(f"four_pictures-{step}", figure, f"The lecture's four pictures at step {step:,}."))
    return kept


def _group(run: Run, kind: str, step: int) -> dict[str, tuple[Floats, Floats]]:
    found = {
        tag.partition("/")[2]: each
        for tag, each in sorted(run.diagnostics.histograms.get(step, {}).items())
        if tag.startswith(f"{kind}/")
    }
    hidden = {name: each for name, each in found.items() if name != "output"}
    return hidden if kind.startswith("activation") and hidden else found


def matrices(values: Mapping[str, Floats]) -> dict[str, Floats]:
    """Weights of two dimensions: neither biases nor BatchNorm's weight and bias."""
    return {name: each for name, each in values.items() if not re.search(r"bias$|batchnorm", name)}


def chosen(steps: Iterable[int], most: int) -> list[int]:
    steps = sorted(steps)
    places = np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int)
    return [steps[place] for place in dict.fromkeys(places.tolist())]


def frames_of(label: str, steps: list[int], pictures: Mapping[int, list[Picture]], small: bool = False) -> Frames:
    keys = chosen(steps, KEY_FRAMES)
    return Frames(label, [Frame(step, pictures[step], step in keys) for step in steps], small)


def missing(what: str, run: Run) -> Note:
    why = "it was trained with callbacks=none" if not run.config.get("callbacks") else "diagnostics.jsonl has none"
    return Note(f"Not measured in this run: {what} ({why}).", missing=True)
