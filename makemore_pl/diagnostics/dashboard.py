"""A TensorBoard that is good at first sight: custom scalars, a URL with pinned cards, hparams with real metrics."""

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

PORT = 6006
PINNED = ("train/loss_mean", "val/loss")
PINNED_QUANTITIES = ("saturation", "activation_std", "update_data_ratio", "batchnorm_mean_lag")
"""Of these the first tag each is pinned: the layer or parameter nearest the input."""

LAYOUT = {
    "training": {
        "loss": ["Multiline", ["train/loss_mean", "val/loss", "baseline/.*"]],
        "learning rate": ["Multiline", ["^lr$"]],
        "gradient norm": ["Multiline", ["grad_norm/.*"]],
    },
    "activations": {
        "saturation": ["Multiline", ["saturation/.*"]],
        "standard deviation": ["Multiline", ["^activation_std/.*"]],
        "gradient by activation, standard deviation": ["Multiline", ["activation_grad_std/.*"]],
    },
    "parameters": {
        "update:data ratio, log10": ["Multiline", ["update_data_ratio/.*"]],
        "grad:data ratio": ["Multiline", ["grad_data_ratio/.*"]],
    },
    "BatchNorm": {
        "lag of the running mean": ["Multiline", ["batchnorm_mean_lag/.*"]],
        "lag of the running variance": ["Multiline", ["batchnorm_var_lag/.*"]],
        "loss gap, running - batch statistics": ["Multiline", ["batchnorm_gap/.*"]],
    },
}
"""Custom scalars: a few charts, each with all layers in it. Entries are regular expressions of tags."""


def add_layout(trainer: Trainer) -> None:
    """Write the custom-scalars layout to every TensorBoard logger."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars(LAYOUT)


def url(tags: Iterable[str], port: int = PORT) -> str:
    """The Time Series page with the main cards pinned, as far as `tags` has them."""
    tags = sorted(tags)
    chosen = [tag for tag in PINNED if tag in tags]
    for quantity in PINNED_QUANTITIES:
        chosen += [tag for tag in tags if tag.startswith(f"{quantity}/")][:1]
    cards = json.dumps([{"plugin": "scalars", "tag": tag} for tag in chosen], separators=(",", ":"))
    return f"http://localhost:{port}/?pinnedCards={quote(cards, safe='')}#timeseries"


def log_hparams(trainer: Trainer, config: dict[str, Any], metrics: dict[str, float]) -> None:
    """The config as flat scalars, and the final losses as the hparams table's metrics (`final/...`)."""
    flat = {
        f"{section}.{key}" if isinstance(content, dict) else section: value
        for section, content in config.items()
        for key, value in (content.items() if isinstance(content, dict) else [("", content)])
    }
    flat = {key: "null" if value is None else value for key, value in flat.items()}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(flat, {f"final/{tag.replace('/', '_')}": value for tag, value in metrics.items()})
            logger.save()
