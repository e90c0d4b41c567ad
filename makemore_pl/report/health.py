"""How healthy a run was: its layers, updates, BatchNorm, embeddings."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from makemore_pl.doctor import forward, normalisation
from makemore_pl.doctor.evidence import Abstain, Evidence, median
from makemore_pl.doctor.facts import Facts
from makemore_pl.doctor.update_ratios import typical_ratio
from makemore_pl.doctor.updates import BAND
from makemore_pl.figures import comparisons, curves, lecture_pictures
from makemore_pl.figures.canvas import in_order, spoken
from makemore_pl.report.evolution import OPENING, SHARES, drops_of, ends, matrices, missing, smooth
from makemore_pl.report.run_directory import Run, read_embedding
from makemore_pl.report.section import Block, Note, Picture, Pictures, Table
from makemore_pl.report.wording import from_to, number, significant

LAYER_QUANTITIES = {
    "activation_std": "activation std",
    "preactivation_std": "preactivation std",
    "saturation": "saturation",
    "saturation_excess": "saturation excess",
    "dead_units": "dead units",
    "linear_share": "linear share",
    "activation_grad_std": "gradient std",
}
"""Tags, and what a table calls them."""
MEANINGS = {
    "preactivation_std": "a preactivation is what goes into the activation function",
    "saturation": "saturation is the share of |activation| > 0.97",
    "saturation_excess": "its excess is what a Gaussian preactivation of that std would not have",
    "dead_units": "a dead unit is saturated on every example",
    "linear_share": "the linear share has |preactivation| < 0.8, where tanh hardly bends",
    "activation_grad_std": "the gradient is that of the loss by the activations",
}
"""What is not said by the name."""
DEEP = 3
"""Layers from which on depth is worth a picture."""


def layers(run: Run) -> list[Block]:
    blocks: list[Block] = []
    if depth := _depth(run):
        blocks.append(Note("How a signal spreads through the depth of the network, which is what the gain decides."))
        blocks.append(Pictures(depth))
    bounds = {"bound at step 0": forward.FIRST}
    if len(run.diagnostics.quantity("saturation")[1]) > 1:
        bounds = {"bound, first layer": forward.FIRST, "bound, later ones": forward.LATER}
    shown = _line_pictures(
        run,
        {
            "saturation": ("saturation", "share", bounds),
            "activation_std": ("activations, standard deviation", "std", {}),
            "dead_units": ("dead units", "share of units", {}),
        },
    )
    if shown:
        blocks.append(Pictures(shown))
    if any(picture.name.startswith("saturation") for picture in shown):
        blocks.append(
            Note(
                f"The doctor judges saturation at the start: up to {forward.FIRST} is healthy in the first tanh layer, "
                f"up to {forward.LATER} in the median of the later ones. Training may raise it."
            )
        )
    return [*blocks, *layers_table(run)] or [missing("the layers")]


def at(run: Run, quantity: str, step: int) -> dict[str, float]:
    """By layer, the last number at or before a step."""
    steps, by_layer = run.diagnostics.quantity(quantity)
    found = {}
    for layer in in_order(by_layer):
        until = by_layer[layer][(steps <= step) & np.isfinite(by_layer[layer])]
        if until.size:
            found[layer] = float(until[-1])
    return found


def _depth(run: Run) -> list[Picture]:
    last = run.diagnostics.last_step or 0
    at_steps = sorted({0, min(OPENING, last), last})
    pictures = []
    for quantity, title in (
        ("activation_std", "spread of the activations over depth"),
        ("activation_grad_std", "spread of their gradients over depth"),
    ):
        by_step = {f"step {step:,}": at(run, quantity, step) for step in at_steps}
        by_step = {step: by for step, by in by_step.items() if len(by) >= DEEP}
        if by_step:
            told = "; ".join(
                f"{step}: {', '.join(f'{spoken(layer)} {significant(each)}' for layer, each in by.items())}"
                for step, by in by_step.items()
            )
            figure = curves.over_depth(by_step, title, "std")
            pictures.append(Picture(f"{quantity}_over_depth", figure, f"{title}. {told}."))
    return pictures


def layers_table(run: Run) -> list[Block]:
    """A row a layer; nothing where none was measured."""
    measured = {name: run.diagnostics.quantity(name)[1] for name in LAYER_QUANTITIES}
    measured = {name: each for name, each in measured.items() if each}
    names = in_order({layer for each in measured.values() for layer in each})
    if not names:
        return []
    rows = [[spoken(layer), *(from_to(each.get(layer)) for each in measured.values())] for layer in names]
    columns = ["layer", *(LAYER_QUANTITIES[name] for name in measured)]
    return [Table("Layers: first watched step → last", columns, rows), *explained(measured)]


def explained(quantities: Iterable[str]) -> list[Block]:
    """What columns mean that do not explain themselves."""
    told = "; ".join(MEANINGS[each] for each in quantities if each in MEANINGS)
    return [Note(f"{told[0].upper()}{told[1:]}.")] if told else []


def updates(run: Run) -> list[Block]:
    steps, updates = run.diagnostics.quantity("update_data_ratio")
    updates = matrices(updates)
    if not updates:
        return [missing("update:data ratios")]
    means = {name: smooth(run, "update_data_ratio", steps, each) for name, each in updates.items()}
    picture = Picture(
        "update_data_ratio_over_steps",
        lecture_pictures.update_ratios(steps, means, BAND, raw=updates, drops=drops_of(run)),
        f"Update to data ratios, log10: {ends(steps, means)}",
        "Lines: means of up to 21 watched steps, points: each. Shaded: the band. Dotted: the lecture's line.",
    )
    ratios = _line_pictures(run, {"grad_data_ratio": ("grad:data ratio", "std(grad) / std(weight)", {})})
    return [
        Note(
            "How large a step is beside the weight that it changes, as the power of ten of std(step) / std(weight). "
            f"The lecture's line is −3. {_judged(typical(run))}"
        ),
        Pictures([picture, *ratios]),
        *updates_table(run),
    ]


def updates_table(run: Run) -> list[Block]:
    """A row a weight; nothing where none was measured."""
    steps, updates = run.diagnostics.quantity("update_data_ratio")
    updates = matrices(updates)
    if not updates:
        return []
    phases = phases_of(run, steps)
    grads = run.diagnostics.quantity("grad_data_ratio")[1]
    rows = [
        [
            spoken(name),
            *(number(median(each[seen]), 2) for seen in phases.values()),
            from_to(grads.get(name)),
        ]
        for name, each in updates.items()
    ]
    columns = ["weight", *phases, "grad:data, first → last"]
    return [Table("Weights: medians of the update:data ratio, log10", columns, rows)]


def typical(run: Run) -> float:
    """The update:data ratio that the doctor judges, log10; nan where none was measured."""
    try:
        return typical_ratio(Evidence(run.diagnostics.values, Facts(vocabulary=("embedding.weight",))))
    except Abstain:
        return float("nan")


def _judged(ratio: float) -> str:
    low, high = BAND
    where = "below" if ratio < low else "above" if ratio > high else "inside"
    return (
        "The doctor judges one number: the median of the weights, embedding aside, while the learning rate is at least "
        f"half of its highest. Here it is {number(ratio, 2)}, {where} the band of {number(low, 1)} to "
        f"{number(high, 1)}."
        if np.isfinite(ratio)
        else ""
    )


def phases_of(run: Run, steps: "np.ndarray[Any, Any]") -> dict[str, "np.ndarray[Any, Any]"]:
    """Which of the steps belong to the start, the time before the learning rate drops, and the end, by name.

    The start ends at OPENING; before a drop the last fifth of the watched steps counts, of the end the last tenth.
    """
    drops = drops_of(run)
    last = int(steps[-1])
    begun = steps <= (min(OPENING, last / 4))
    begun &= steps >= steps[begun.sum() // 2]  # its second half: the first steps are of another size
    found = {f"start, to step {steps[begun][-1]:,}": begun}
    if drops.size and (steps < drops[0]).any():
        before = steps < drops[0]
        before &= steps >= steps[before][-max(1, before.sum() // 5)]
        found[f"before the drop at {int(drops[0]):,}"] = before
    found["end"] = steps >= (max(last * 0.9, drops[-1]) if drops.size else last * 0.9)
    return {name: seen for name, seen in found.items() if seen.any()}


def batchnorm(run: Run) -> list[Block]:
    if run.get("model.batchnorm") == "none":
        return []
    lags = {"expected": 1.0, "bound": normalisation.LAG}
    shown = _line_pictures(
        run,
        {
            "batchnorm_mean_lag": ("lag of the running mean", "standard errors", lags),
            "batchnorm_var_lag": ("lag of the running variance", "of its noise", lags),
            "batchnorm_gap": ("loss gap, running − batch statistics", "nats", {"bound": normalisation.GAP}),
            "batchnorm_weight_std": ("BatchNorm weight (gamma), spread", "std over units", {}),
            "batchnorm_bias_std": ("BatchNorm bias (beta), spread", "std over units", {}),
        },
    )
    if not shown:
        return [missing("BatchNorm")]
    return [
        Note(
            "Eval mode uses running statistics. Where they keep up with the network, their distance from a minibatch's "
            "own is the noise of drawing it: a lag of 1, or less behind another BatchNorm, which has taken most of "
            f"that noise away. Above {normalisation.LAG} they trail behind, which harms where it costs more than "
            f"{normalisation.GAP} nats."
        ),
        Pictures(shown),
    ]


def embeddings(run: Run) -> list[Block]:
    try:
        characters, embedding = read_embedding(run.directory)
    except ValueError as error:
        return [missing(f"the embeddings ({str(error).removesuffix('.')})")]
    picture = Picture(
        "embeddings",
        comparisons.embeddings_2d(embedding, characters),
        f"The embeddings of {len(characters)} characters in their two principal components.",
        f"The {embedding.shape[1]} numbers of each character, seen in the two directions of most variance (PCA).",
    )
    return [Pictures([picture])]


def _line_pictures(run: Run, wanted: Mapping[str, tuple[str, str, Mapping[str, float]]]) -> list[Picture]:
    pictures = []
    for quantity, (title, label, references) in wanted.items():
        steps, values = run.diagnostics.quantity(quantity)
        values = {name: values[name] for name in in_order(values) if np.isfinite(values[name]).any()}
        means = {name: smooth(run, quantity, steps, each) for name, each in values.items()}
        if any(each.any() for each in means.values()):  # all zero: the table says so
            figure = curves.lines(
                steps, means, title, label, references,
                log_values=quantity == "grad_data_ratio", raw={} if quantity in SHARES else values,
                drops=drops_of(run),
            )  # fmt: skip
            pictures.append(Picture(f"{quantity}_over_steps", figure, f"{title}: {ends(steps, means)}"))
    return pictures
