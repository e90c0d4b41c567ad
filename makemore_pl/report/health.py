"""The sections on how healthy a run was: its layers, updates, BatchNorm and embeddings."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from makemore_pl.figures import comparisons, curves, lecture_pictures
from makemore_pl.figures.canvas import in_order, spoken
from makemore_pl.figures.series import Floats
from makemore_pl.report.evolution import OPENING, SHARES, drops_of, matrices, missing, smooth
from makemore_pl.report.run_directory import Run, read_embedding
from makemore_pl.report.section import Block, Note, Picture, Pictures, Table
from makemore_pl.report.wording import ends, from_to, number, significant

FIRST_BOUND, LATER_BOUND = 0.25, 0.15
"""Bounds of saturation, in the first tanh layer and in later ones. Gain 5/3 lies below them, gain 2 above."""
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
DEEP = 3
"""Networks with fewer layers get no picture over depth."""


def layers(run: Run) -> list[Block]:
    blocks: list[Block] = []
    if depth := _depth(run):
        blocks.append(Note("Here one sees what the gain does: whether the signal keeps its spread through the layers."))
        blocks.append(Pictures(depth))
    bounds = {"bound": FIRST_BOUND}
    if len(run.diagnostics.quantity("saturation")[1]) > 1:
        bounds = {"bound, first layer": FIRST_BOUND, "bound, later ones": LATER_BOUND}
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
    if reading := _over_bound(run):
        blocks.append(Note(reading))
    if table := _layers(run):
        blocks.append(table)
    return blocks or [missing("the layers")]


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
                f"{step}: {', '.join(f'{spoken(layer)} {significant(each)}' for layer, each in by.items())}"
                for step, by in by_step.items()
            )
            figure = curves.over_depth(by_step, title, "std")
            pictures.append(Picture(f"{quantity}_over_depth", figure, f"{title}. {told}."))
    return pictures


def _over_bound(run: Run) -> str:
    last = at(run, "saturation", run.diagnostics.last_step or 0)
    bounds = {name: LATER_BOUND if place else FIRST_BOUND for place, name in enumerate(last)}
    over = [f"{spoken(name)} ({significant(each)})" for name, each in last.items() if each > bounds[name]]
    if not last:
        return ""
    rule = f"the bounds, {FIRST_BOUND} in the first layer and {LATER_BOUND} in later ones (gain 5/3 gives about 0.2)"
    return (
        f"Saturation over {rule}: {', '.join(over)}."
        if over
        else f"In the end the saturation of all layers is within {rule}."
    )


def _layers(run: Run) -> Table | None:
    measured = {name: run.diagnostics.quantity(name)[1] for name in LAYER_QUANTITIES}
    measured = {name: each for name, each in measured.items() if each}
    names = in_order({layer for each in measured.values() for layer in each})
    if not names:
        return None
    rows = [[spoken(layer), *(from_to(each.get(layer)) for each in measured.values())] for layer in names]
    return Table("Layers: first watched step → last", ["layer", *(LAYER_QUANTITIES[name] for name in measured)], rows)


def updates(run: Run) -> list[Block]:
    steps, updates = run.diagnostics.quantity("update_data_ratio")
    updates = matrices(updates)
    if not updates:
        return [missing("update:data ratios")]
    low, high = lecture_pictures.BAND_OF_UPDATES
    means = {name: smooth(run, "update_data_ratio", steps, each) for name, each in updates.items()}
    picture = Picture(
        "update_data_ratio_over_steps",
        lecture_pictures.update_ratios(steps, means, raw=updates, drops=drops_of(run)),
        f"Update to data ratios, log10: {ends(steps, means)}",
        "Lines: means of up to 21 watched steps. Points: single steps. Shaded: the band. Dotted: the lecture's line.",
    )
    ratios = _line_pictures(run, {"grad_data_ratio": ("grad:data ratio", "std(grad) / std(weight)", {})})
    phases = phases_of(run, steps)
    rows: list[list[Any]] = []
    for name, each in updates.items():
        grad = run.diagnostics.quantity("grad_data_ratio")[1].get(name)
        rows.append([spoken(name), *(_judged(each[seen], shift) for seen, shift in phases.values()), from_to(grad)])
    fallen = [f"{shift:.1f}".replace("-", "−") for _, shift in phases.values() if shift]
    dropped = (
        f" At the end the learning rate has dropped, so the band is lower there, by {fallen[-1]}." if fallen else ""
    )
    return [
        Note(
            f"The size of a step relative to the weights that it changes, in powers of ten. The lecture's line is −3. "
            f"The band, {number(low, 1)} to {number(high, 1)}, includes the lecture's own healthy networks: with "
            f"BatchNorm they are at −1.9 to −2.3.{dropped}"
        ),
        Pictures([picture, *ratios]),
        Table(
            "Weights: update:data ratio, log10, medians, and whether they are inside the band",
            ["weight", *phases, "grad:data, first → last"],
            rows,
        ),
    ]


def phases_of(run: Run, steps: "np.ndarray[Any, Any]") -> dict[str, tuple["np.ndarray[Any, Any]", float]]:
    """Phases in which updates are judged: name -> which steps it has, and log10 of how far the learning rate has
    fallen.

    The phases are the start, the last fifth of the watched steps before the learning rate drops (if it does), and the
    last tenth of the run.
    """
    lr_steps, lrs = run.diagnostics.tag("lr")
    drops = drops_of(run)
    last = int(steps[-1])
    begun = steps <= (min(OPENING, last / 4))
    begun &= steps >= steps[begun.sum() // 2]  # only its second half, because the first steps are of another size
    found = {f"start, to step {steps[begun][-1]:,}": (begun, 0.0)}
    if drops.size and (steps < drops[0]).any():
        before = steps < drops[0]
        before &= steps >= steps[before][-max(1, before.sum() // 5)]
        found[f"before the drop at {int(drops[0]):,}"] = (before, 0.0)
    shift = float(np.log10(lrs[-1] / lrs[lr_steps < drops[0]][-1])) if drops.size else 0.0
    found["end"] = (steps >= (max(last * 0.9, drops[-1]) if drops.size else last * 0.9), shift)
    return {name: (seen, shift) for name, (seen, shift) in found.items() if seen.any()}


def _judged(ratios: Floats, shift: float) -> str:
    if not np.isfinite(ratios).any():
        return "–"
    low, high = (bound + shift for bound in lecture_pictures.BAND_OF_UPDATES)
    ratio = float(np.median(ratios[np.isfinite(ratios)]))
    return f"{number(ratio, 2)} {'below' if ratio < low else 'above' if ratio > high else 'inside'}"


def batchnorm(run: Run) -> list[Block]:
    if run.get("model.batchnorm") == "none":
        return []
    shown = _line_pictures(
        run,
        {
            "batchnorm_mean_lag": ("lag of the running mean", "standard errors", {"expected": 1.0, "bound": 1.5}),
            "batchnorm_var_lag": ("lag of the running variance", "of its noise", {"expected": 1.0, "bound": 1.5}),
            "batchnorm_gap": ("loss gap, running − batch statistics", "nats", {"none": 0.0}),
            "batchnorm_weight_std": ("BatchNorm weight (gamma), spread", "std over units", {}),
            "batchnorm_bias_std": ("BatchNorm bias (beta), spread", "std over units", {}),
        },
    )
    if not shown:
        return [missing("BatchNorm")]
    return [
        Note(
            "Eval mode uses running statistics. If they keep up with the network, they differ from a minibatch's own "
            "statistics only by the noise of drawing the minibatch: that is a lag of 1, or less after another "
            "BatchNorm, which removes most of that noise. Above 1.5 they are behind."
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
        if any(each.any() for each in means.values()):  # if all are zero, the table is enough
            figure = curves.lines(
                steps, means, title, label, references,
                log_values=quantity == "grad_data_ratio", raw={} if quantity in SHARES else values,
                drops=drops_of(run),
            )  # fmt: skip
            pictures.append(Picture(f"{quantity}_over_steps", figure, f"{title}: {ends(steps, means)}"))
    return pictures
