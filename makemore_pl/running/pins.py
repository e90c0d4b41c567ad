"""Addresses of TensorBoard that open with the cards worth seeing pinned."""

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from makemore_pl.figures.canvas import in_order

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
"""Cards from left to right, in two columns. Of each group the first choice that there is: a tag, or of a beginning,
which ends in a slash, every layer or matrix. A picture shows all layers, but belongs to one run."""


def url(tags: Iterable[str], port: int = PORT, runs: Iterable[str] = (".",), colour_by: str = "") -> str:
    """The Time Series page, unsmoothed, with the main cards pinned as far as `tags` has them.

    Args:
        runs: what TensorBoard may call the run, by the directory that it was given; none for a sweep, which then has
            no pictures.
        colour_by: a regular expression; runs whose names have the same match, or the same group of it, get one colour.
    """
    runs = list(runs)
    tags = {tag for tag in tags if runs or not tag.startswith("pictures/")}
    cards: list[dict[str, Any]] = []
    for group in PINNED:
        found = next(filter(None, (_chosen(choice, tags) for choice in group)), [])
        for tag in found:
            if tag.startswith("pictures/"):  # those of a run that is not there are not shown
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
    """The page of LAYOUT, unsmoothed."""
    return f"http://localhost:{port}/#custom_scalars&_smoothingWeight=0"
