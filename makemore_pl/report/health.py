"""The sections on how healthy a run was: its layers, updates, BatchNorm and embeddings."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from makemore_pl.doctor import forward, normalisation
from makemore_pl.doctor.evidence import Abstain, Evidence, median
from makemore_pl.doctor.facts import Facts
from makemore_pl.doctor.update_ratios import typical_ratio
from makemore_pl.doctor.updates import BAND
from makemore_pl.figures import comparisons, curves, lecture_pictures
from makemore_pl.figures.layer_names import in_order, spoken
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
"""Quantity -> title of its column in a table."""
MEANINGS = {
    "preactivation_std": "a preactivation is what goes into the activation function",
    "saturation": "saturation is the share of |activation| > 0.97",
    "saturation_excess": "its excess is what a Gaussian preactivation of that std would not have",
    "dead_units": "a dead unit is saturated on every example",
    "linear_share": "the linear share has |preactivation| < 0.8, where tanh hardly bends",
    "activation_grad_std": "the gradient is that of the loss by the activations",
}
"""Quantity -> what it means, for those whose name does not say it."""
DEEP = 3
"""Networks with fewer layers get no picture over depth."""


def layers(run: Run) -> list[Block]:
    blocks: list[Block] = []
    if depth := _depth(run):
        blocks.append(Note("Here one sees what the gain does: whether the signal keeps its spread through the layers."))
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
    """Layer -> its last number at or before a step."""
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
                f"{step}: {', '.join(f'{spoken(layer)} {significant(std)}' for layer, std in by.items())}"
                for step, by in by_step.items()
            )
            figure = curves.over_depth(by_step, title, "std")
            pictures.append(Picture(f"{quantity}_over_depth", figure, f"{title}. {told}."))
    return pictures


def layers_table(run: Run) -> list[Block]:
    """The table with a row for each layer; none if no layer was measured."""
    measured = {name: run.diagnostics.quantity(name)[1] for name in LAYER_QUANTITIES}
    measured = {name: by_layer for name, by_layer in measured.items() if by_layer}
    names = in_order({layer for by_layer in measured.values() for layer in by_layer})
    if not names:
        return []
    rows = [[spoken(layer), *(from_to(by_layer.get(layer)) for by_layer in measured.values())] for layer in names]
    columns = ["layer", *(LAYER_QUANTITIES[name] for name in measured)]
    return [Table("Layers: first watched step → last", columns, rows), *explained(measured)]


def explained(quantities: Iterable[str]) -> list[Block]:
    """The meanings of the columns whose names do not say it."""
    told = "; ".join(MEANINGS[quantity] for quantity in quantities if quantity in MEANINGS)
    return [Note(f"{told[0].upper()}{told[1:]}.")] if told else []


def updates(run: Run) -> list[Block]:
    steps, updates = run.diagnostics.quantity("update_data_ratio")
    updates = matrices(updates)
    if not updates:
        return [missing("update:data ratios")]
    means = {name: smooth(run, "update_data_ratio", steps, ratios) for name, ratios in updates.items()}
    picture = Picture(
        "update_data_ratio_over_steps",
        lecture_pictures.update_ratios(steps, means, BAND, raw=updates, drops=drops_of(run)),
        f"Update to data ratios, log10: {ends(steps, means)}",
        "Lines: means of up to 21 watched steps. Points: single steps. Shaded: the band. Dotted: the lecture's line.",
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
    """The table with a row for each weight; none if no weight was measured."""
    steps, updates = run.diagnostics.quantity("update_data_ratio")
    updates = matrices(updates)
    if not updates:
        return []
    phases = phases_of(run, steps)
    grads = run.diagnostics.quantity("grad_data_ratio")[1]
    rows = [
        [
            spoken(name),
            *(number(median(ratios[seen]), 2) for seen in phases.values()),
            from_to(grads.get(name)),
        ]
        for name, ratios in updates.items()
    ]
    columns = ["weight", *phases, "grad:data, first → last"]
    return [Table("Weights: medians of the update:data ratio, log10", columns, rows)]


def typical(run: Run) -> float:
    """The log10 of update over data that the doctor judges; nan if none was measured."""
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
    """Phase (start, before the learning rate drops, end) -> which of the steps belong to it.

    The start ends at OPENING. The second phase is the last fifth of the watched steps before the drop, the end is the
    last tenth of all.
    """
    drops = drops_of(run)
    last = int(steps[-1])
    begun = steps <= (min(OPENING, last / 4))
    begun &= steps >= steps[begun.sum() // 2]  # only its second half, because the first steps are of another size
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
        means = {name: smooth(run, quantity, steps, series) for name, series in values.items()}
        if any(mean.any() for mean in means.values()):  # if all are zero, the table is enough
            figure = curves.lines(
                steps, means, title, label, references,
                log_values=quantity == "grad_data_ratio", raw={} if quantity in SHARES else values,
                drops=drops_of(run),
            )  # fmt: skip
            pictures.append(Picture(f"{quantity}_over_steps", figure, f"{title}: {ends(steps, means)}"))
    return pictures
