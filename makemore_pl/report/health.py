"""How healthy a run was: saturation, updates, BatchNorm, embeddings."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from makemore_pl.figures import comparisons, lecture_pictures
from makemore_pl.figures.series import running_mean
from makemore_pl.report.evolution import FRAMES, chosen, frames_of, matrices, missing
from makemore_pl.report.run_directory import Run, read_embedding
from makemore_pl.report.section import Block, Note, Picture, Pictures, Table
from makemore_pl.report.wording import ends, from_to, number

RASTERS = 15
"""At most, over all layers and steps."""
FIRST_BOUND, LATER_BOUND = 0.25, 0.15
"""Of saturation, in the first tanh layer and in later ones: between what gain 5/3 gives and what gain 2 does."""


def saturation(run: Run) -> list[Block]:
    blocks: list[Block] = []
    rasters = run.diagnostics.rasters
    layers = max((len(each) for each in rasters.values()), default=0)
    if layers:
        steps = chosen(rasters, max(2, min(FRAMES, RASTERS // layers)))
        pictures = {
            step: [
                Picture(
                    f"{tag.replace('/', '-').replace('.', '-')}-{step}",
                    lecture_pictures.saturation_raster(raster, tag.partition("/")[2]),
                    f"{tag} at step {step:,}: {raster.mean():.1%} of {raster.shape[1]} units times "
                    f"{raster.shape[0]} examples saturated, {raster.all(0).sum()} units on every example.",
                    kept=step == steps[-1],
                )
                for tag, raster in sorted(rasters[step].items())
            ]
            for step in steps
        }
        blocks.append(
            Note(
                "White: |activation| > 0.97, where tanh passes on less than 6 % of its gradient. A column white from "
                "top to bottom is a dead unit."
            )
        )
        blocks.append(frames_of("Saturated units", steps, pictures, small=layers > 1))
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
    if not blocks:
        return [missing("saturation", run)]
    return blocks


def _over_bound(run: Run) -> str:
    steps, layers = run.diagnostics.quantity("saturation")
    last = {name: float(running_mean(steps, each)[-1]) for name, each in sorted(layers.items())}
    bounds = {name: LATER_BOUND if place else FIRST_BOUND for place, name in enumerate(last)}
    over = [f"{name} ({number(each, 2)})" for name, each in last.items() if each > bounds[name]]
    if not last:
        return ""
    rule = f"the bounds, {FIRST_BOUND} in the first layer and {LATER_BOUND} in later ones (gain 5/3 gives about 0.2)"
    return f"Over {rule}: {', '.join(over)}." if over else f"In the end all layers are within {rule}."


def _layers(run: Run) -> Table | None:
    quantities = {
        "activation_std": "activation std",
        "preactivation_std": "preactivation std",
        "saturation": "saturation",
        "saturation_excess": "saturation excess",
        "dead_units": "dead units",
        "linear_share": "linear share",
        "activation_grad_std": "gradient std",
    }
    measured = {name: run.diagnostics.quantity(name)[1] for name in quantities}
    measured = {name: each for name, each in measured.items() if each}
    layers = sorted({layer for each in measured.values() for layer in each})
    if not layers:
        return None
    rows = [[layer, *(from_to(each.get(layer)) for each in measured.values())] for layer in layers]
    return Table("Layers: first watched step → last", ["layer", *(quantities[name] for name in measured)], rows)


def updates(run: Run) -> list[Block]:
    steps, updates = run.diagnostics.quantity("update_data_ratio")
    updates = matrices(updates)
    if not updates:
        return [missing("update:data ratios", run)]
    low, high = lecture_pictures.BAND_OF_UPDATES
    smooth = {name: running_mean(steps, each) for name, each in updates.items()}
    picture = Picture(
        "update_data_ratio",
        lecture_pictures.update_ratios(steps, smooth),
        f"Update to data ratios, log10: {ends(steps, smooth)}",
        "Means over up to 21 watched steps. Shaded: the band. Dotted: the lecture's line.",
    )
    ratios = _line_pictures(run, {"grad_data_ratio": ("grad:data ratio", "std(grad) / std(weight)", {})})
    tail = slice(-max(1, len(steps) // 10), None)
    rows: list[list[Any]] = []
    for name, each in updates.items():
        ratio = float(np.nanmedian(each[tail])) if np.isfinite(each[tail]).any() else float("nan")
        grad = run.diagnostics.quantity("grad_data_ratio")[1].get(name)
        verdict = "inside" if low <= ratio <= high else "below" if ratio < low else "above" if ratio > high else "–"
        rows.append([name, number(ratio, 2), verdict, from_to(grad)])
    columns = ["weight", "update:data, log10", "band", "grad:data, first → last"]
    return [
        Note(
            f"How large a step is beside what it changes, in powers of ten. The lecture's line is −3; the band, "
            f"{number(low, 1)} to {number(high, 1)}, is where the lecture's own healthy networks move too: with "
            "BatchNorm they sit at −1.9 to −2.3."
        ),
        Pictures([picture, *ratios]),
        Table("Weights: median of the last tenth of the watched steps", columns, rows),
    ]


def batchnorm(run: Run) -> list[Block]:
    if run.get("model.batchnorm") == "none":
        return [Note("This network has no BatchNorm.", missing=True)]
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
        return [missing("BatchNorm", run)]
    return [
        Note(
            "Eval mode uses running statistics. Where they keep up with the network, their distance from a minibatch's "
            "own is the noise of drawing it: a lag of 1, or less behind another BatchNorm, which has taken most of "
            "that noise away. Above 1.5 they trail behind."
        ),
        Pictures(shown),
    ]


def embeddings(run: Run) -> list[Block]:
    try:
        characters, embedding = read_embedding(run.directory)
    except ValueError as error:
        return [Note(f"{error} So there are no embeddings to show.", missing=True)]
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
        smooth = {name: running_mean(steps, each) for name, each in sorted(values.items()) if np.isfinite(each).any()}
        if any(each.any() for each in smooth.values()):  # all zero: the table says so
            figure = lecture_pictures.lines(
                steps, smooth, title, label, references, log_values=quantity == "grad_data_ratio"
            )
            pictures.append(Picture(quantity, figure, f"{title}: {ends(steps, smooth)}"))
    return pictures
