"""Addresses of TensorBoard that open it with its main cards pinned."""

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from makemore_pl.figures.layer_names import in_order

PORT = 6006
PINNED = (
    ("train/loss_mean",),
    ("val/loss",),
    ("pictures/activations", "activation_std/"),
    ("pictures/activation_gradients", "activation_grad_std/"),
    ("pictures/update_data_ratio", "update_data_ratio/"),
    ("pictures/weight_gradients", "grad_data_ratio/"),
    ("pictures/saturation", "saturation/", "zero_share/"),
    ("pictures/spread_over_depth", "activation_std/"),
    ("batchnorm_mean_lag/",),
)
"""The pinned cards, row by row in two columns. Of each group the first choice that was logged is pinned. A choice is a
tag, or the beginning of tags up to a slash, which pins a card for each layer or matrix. A picture shows all layers of
one run."""


def url(tags: Iterable[str], port: int = PORT, runs: Iterable[str] = (".",), colour_by: str = "") -> str:
    """The address of the Time Series page, without smoothing, with those main cards pinned that `tags` has.

    Args:
        runs: the names that TensorBoard may give to the run, which depend on its --logdir; empty for a sweep, for which
            no pictures are pinned.
        colour_by: a regular expression. Runs whose names have the same match (or first group) get the same colour.
    """
    runs = list(runs)
    tags = {tag for tag in tags if runs or not tag.startswith("pictures/")}
    cards: list[dict[str, Any]] = []
    for group in PINNED:
        found = next(filter(None, (_chosen(choice, tags) for choice in group)), [])
        for tag in found:
            if tag.startswith("pictures/"):  # TensorBoard leaves out cards of runs that it does not have
                cards += [
                    {"plugin": "images", "tag": tag, "runId": f"defaultExperimentId/{run}", "sample": 0} for run in runs
                ]
            elif {"plugin": "scalars", "tag": tag} not in cards:
                cards.append({"plugin": "scalars", "tag": tag})
    pinned = quote(json.dumps(cards, separators=(",", ":")), safe="")
    coloured = f"&runColorGroup={quote(f'regex:{colour_by}', safe='')}" if colour_by else ""
    return f"http://localhost:{port}/?pinnedCards={pinned}&smoothing=0{coloured}#timeseries"


def _chosen(choice: str, tags: Iterable[str]) -> list[str]:
    every = [tag for tag in tags if tag == choice or (choice.endswith("/") and tag.startswith(choice))]
    return in_order(tag for tag in every if not re.search(r"bias$|batchnorm\.", tag))


def custom_scalars_url(port: int = PORT) -> str:
    """The address of the Custom Scalars page, which shows LAYOUT, without smoothing."""
    return f"http://localhost:{port}/#custom_scalars&_smoothingWeight=0"
