"""The sections on how a run went: its losses, and the lecture's four pictures and rasters step by step."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from makemore_pl.doctor.updates import BAND
from makemore_pl.figures import curves, lecture_pictures
from makemore_pl.figures.layer_names import in_order, spoken
from makemore_pl.figures.series import Floats, Histogram, drops, trailing_mean
from makemore_pl.report.run_directory import Run
from makemore_pl.report.section import Block, Frames, Note, Picture, Pictures, Scene
from makemore_pl.report.wording import from_to, listed

FRAMES = 12
"""A slider has at most this many steps."""
OPENING = 1000
"""The step at which the lecture shows its pictures. The slider starts there."""
DISTRIBUTIONS = {
    "activations": ("activations", "activation", False, False),
    "activation_grads": ("activation gradients", "activation gradient", True, False),
    "weight_grads": ("weight gradients", "weight gradient", True, True),
}
"""Kind of histogram -> title, label, whether the density is logarithmic, and whether each curve is in units of its own
standard deviation."""
SHARES = ("saturation", "saturation_excess", "dead_units", "stuck_units", "linear_share", "zero_share")
"""Shares of units or activations. They are shown without smoothing, because their means would be impossible values."""


def drops_of(run: Run) -> Floats:
    """Steps at which the learning rate drops: the configured step, or else the first watched step after the drop."""
    seen = drops(*run.diagnostics.tag("lr"))
    at, steps = run.get("optim.decay_at"), run.get("trainer.max_steps")
    if run.get("optim.schedule") == "step_decay" and len(seen) == 1 and at and steps:
        return np.array([float(round(at * steps))])
    return seen


def smooth(run: Run, quantity: str, steps: ArrayLike, values: Floats) -> Floats:
    """The values as all pictures show them: a trailing mean, or the numbers themselves if they are shares."""
    return values if quantity in SHARES else trailing_mean(steps, values, drops_of(run))


def loss(run: Run) -> list[Block]:
    steps, train = run.diagnostics.tag("train/loss")
    if not steps.size:
        return [missing("the training loss")]
    val_steps, val = run.diagnostics.tag("val/loss")
    mean_steps, mean = run.diagnostics.tag("train/loss_mean")
    mean = mean if np.array_equal(mean_steps, steps) else trailing_mean(steps, train, drops_of(run))
    baselines = {
        name: float(values[-1])
        for name, values in run.diagnostics.quantity("baseline")[1].items()
        if np.isfinite(values[-1])
    }
    alt = f"Training loss from {train[0]:.2f} nats at step {steps[0]:,} to {mean[-1]:.2f} at step {steps[-1]:,}."
    if val.size:
        alt += f" Validation loss {val[-1]:.4f} at step {val_steps[-1]:,}."
    views = {"loss_beginning": (True, False), "loss_whole": (False, True), "loss": (False, False)}
    if not train[0] > 10:  # without a confidently wrong start there is no hockey stick to show
        del views["loss_whole"]
    pictures = [
        Picture(
            f"{name}_over_steps",
            curves.loss_curve(steps, train, val_steps, val, baselines, log, mean, drops_of(run), whole),
            alt,
        )
        for name, (log, whole) in views.items()
    ]
    blocks: list[Block] = [Pictures(pictures)]
    _, passed = run.diagnostics.quantity("baseline_passed")
    if passed:
        told = ", ".join(f"{name} at step {int(np.nanmax(at)):,}" for name, at in passed.items())
        blocks.append(
            Note(f"The baselines need no network. Means of the training loss over 100 steps or more were below {told}.")
        )
    elif baselines:
        blocks.append(Note("The baselines need no network: all characters alike, their frequency, pairs' frequency."))
    return blocks


def step_by_step(runs: Mapping[str, Run]) -> list[Block]:
    """The four pictures and the rasters of one run, or of two runs side by side, under one slider.

    Args:
        runs: label on the page -> run; the label is "" for a single run.
    """
    all_steps = sorted(
        {step for run in runs.values() for step in {**run.diagnostics.histograms, **run.diagnostics.rasters}}
    )
    steps = chosen(all_steps, FRAMES)
    if not steps:
        return [missing("distributions")]
    by_kind = {title: _distribution_scenes(runs, kind) for kind, (title, *_) in DISTRIBUTIONS.items()}
    scenes = [scene for each in by_kind.values() for scene in each]
    absent = [title for title, each in by_kind.items() if not each]
    scenes += _update_scenes(runs, steps)
    scenes += _raster_scenes(runs)
    opening = max(step for step in steps if step <= OPENING) if steps[-1] >= OPENING else steps[-1]
    keys = sorted({steps[0], opening, steps[-1]})
    blocks: list[Block] = [
        Note(
            "In a healthy network activations are alike in every layer and few are at ±1, gradients are alike in every "
            "layer and neither shrink nor grow towards the first, and update:data ratios lie inside the band. In the "
            "rasters white is "
            "saturated: |activation| > 0.97, where tanh passes on less than 6 % of its gradient. A column white from "
            "top to bottom is a dead unit."
        ),
        Frames("The pictures, step by step", steps, scenes, keys, opening),
    ]
    if absent:
        blocks.append(Note(f"Not measured in this run: {', '.join(absent)}.", missing=True))
    return blocks


def _distribution_scenes(runs: Mapping[str, Run], kind: str) -> list[Scene]:
    title, label, log, own_units = DISTRIBUTIONS[kind]
    groups = {owner: groups_by_step(run, kind) for owner, run in runs.items()}
    every = [group for by_step in groups.values() for group in by_step.values()]
    scenes = []
    for owner, by_step in groups.items():
        if not by_step:
            continue
        film = lecture_pictures.distribution_film(by_step, _owned(title, owner), label, log, own_units, every)
        alts = {
            step: f"Density of {title} at step {step:,}, a line for each of {listed(map(spoken, group))}."
            for step, group in by_step.items()
        }
        scenes.append(Scene(_named(kind, owner, runs), film, alts))
    return scenes


def _update_scenes(runs: Mapping[str, Run], at: Sequence[int]) -> list[Scene]:
    measured = {owner: run.diagnostics.quantity("update_data_ratio") for owner, run in runs.items()}
    beside = [(steps, weight) for steps, values in measured.values() for weight in matrices(values).values()]
    scenes = []
    for owner, (steps, values) in measured.items():
        weights = matrices(values)
        at_hand = [step for step in at if steps.size and step >= steps[0]]
        if not weights or not at_hand:
            continue
        film = lecture_pictures.update_film(
            steps, weights, at_hand, BAND, drops_of(runs[owner]), beside, _owned("update:data ratio", owner)
        )
        alts = {}
        for step in at_hand:
            until = steps <= step
            so_far = {name: ratios[until] for name, ratios in weights.items()}
            alts[step] = f"Update to data ratios up to step {step:,}: {ends(steps[until], so_far)}"
        scenes.append(Scene(_named("update_data_ratio", owner, runs), film, alts))
    return scenes


def _raster_scenes(runs: Mapping[str, Run]) -> list[Scene]:
    tags = in_order({tag for run in runs.values() for by_tag in run.diagnostics.rasters.values() for tag in by_tag})
    scenes = []
    for tag in tags:
        for owner, run in runs.items():
            rasters = {step: by_tag[tag] for step, by_tag in sorted(run.diagnostics.rasters.items()) if tag in by_tag}
            rasters = {
                step: raster for step, raster in rasters.items() if raster.shape == next(iter(rasters.values())).shape
            }
            if not rasters:
                continue
            name = f"saturated units, {spoken(tag.partition('/')[2])}"
            alts = {
                step: f"{name} at step {step:,}: {raster.mean():.1%} of {raster.shape[1]} units times "
                f"{raster.shape[0]} examples saturated, {raster.all(0).sum()} units on every example."
                for step, raster in rasters.items()
            }
            film = lecture_pictures.raster_film(rasters, _owned(name, owner))
            scenes.append(Scene(_named(re.sub(r"[^\w]", "-", tag), owner, runs), film, alts))
    return scenes


def _owned(title: str, owner: str) -> str:
    return f"{owner}: {title}" if owner else title


def _named(kind: str, owner: str, runs: Iterable[str]) -> str:
    """A name that is unique in the page and does not depend on the names of the runs."""
    places = list(runs)
    return f"{kind}-{'ab'[places.index(owner)]}" if len(places) > 1 else kind


def four_pictures(run: Run, steps: Iterable[int]) -> list[Picture]:
    """The lecture's four pictures in one, at each of these steps that has histograms. They are saved as files."""
    update_steps, updates = run.diagnostics.quantity("update_data_ratio")
    groups = [groups_by_step(run, kind) for kind in DISTRIBUTIONS]
    kept = []
    for step in sorted(set(steps) & set(run.diagnostics.histograms)):
        until = update_steps <= step
        activations, activation_grads, weight_grads = (group.get(step, {}) for group in groups)
        figure = lecture_pictures.four_pictures(
            activations,
            activation_grads,
            weight_grads,
            update_steps[until],
            {name: ratios[until] for name, ratios in matrices(updates).items()},
            BAND,
            f"step {step:,}",
        )
        kept.append(Picture(f"four_pictures_{step}", figure, f"The lecture's four pictures at step {step:,}."))
    return kept


def groups_by_step(run: Run, kind: str) -> dict[int, dict[str, Histogram]]:
    """Step -> layer or parameter -> histogram of this kind. For activations only hidden layers are included."""
    found = {}
    for step, tags in sorted(run.diagnostics.histograms.items()):
        group: dict[str, Histogram] = {
            tag.partition("/")[2]: tags[tag] for tag in in_order(tags) if tag.startswith(f"{kind}/")
        }
        hidden = {name: histogram for name, histogram in group.items() if name != "output"}
        if group:
            found[step] = hidden if kind.startswith("activation") and hidden else group
    return found


def matrices(values: Mapping[str, Floats]) -> dict[str, Floats]:
    """The entries of weight matrices, so without biases and without BatchNorm's weight and bias."""
    return {name: values[name] for name in in_order(values) if not re.search(r"bias$|batchnorm", name)}


def chosen(steps: Iterable[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly spaced in the list, with the first, the last, and OPENING if it is a step."""
    steps = sorted(steps)
    places = np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int).tolist()
    picked = {steps[place] for place in places}
    if OPENING in steps and OPENING not in picked and most > 2:
        picked = (picked - {min(picked - {steps[0], steps[-1]}, key=lambda step: abs(step - OPENING))}) | {OPENING}
    return sorted(picked)


def ends(steps: ArrayLike, values: Mapping[str, Floats]) -> str:
    """A sentence with the first and the last value of each."""
    told = "; ".join(f"{spoken(name)} {from_to(series)}" for name, series in values.items())
    return f"{told}, to step {int(np.asarray(steps)[-1]):,}."


def missing(what: str) -> Note:
    return Note(what, missing=True)
