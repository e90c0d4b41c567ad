"""A trained network on whole splits, with BatchNorm's running statistics and with those of the training split."""

from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from makemore_pl.checkpoint import load_module
from makemore_pl.config import Config
from makemore_pl.data import SPLITS, Vocabulary, split_examples
from makemore_pl.losses import split_loss
from makemore_pl.report.wording import number
from makemore_pl.running.accelerator import device_of
from makemore_pl.running.output import show
from makemore_pl.words import load_words


@torch.no_grad()
def recalibrate(model: nn.Module, x: Tensor) -> None:
    """Replace every BatchNorm's running statistics by those of all of x (N, block_size): the lecture's calibration.

    One pass in train mode with the whole of x as one batch, so that each layer is calibrated on what it will really
    see from the layers before.

    Raises:
        ValueError: where the model has no BatchNorm.
    """
    batchnorms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not batchnorms:
        raise ValueError("There is nothing to recalibrate: the model has no BatchNorm.")
    momenta = [batchnorm.momentum for batchnorm in batchnorms]
    training = {module: module.training for module in model.modules()}
    model.eval()
    for batchnorm in batchnorms:
        batchnorm.train()
        batchnorm.momentum = 1.0
    model(x.to(next(model.parameters()).device))
    for batchnorm, momentum in zip(batchnorms, momenta, strict=True):
        batchnorm.momentum = momentum
    for module, mode in training.items():
        module.training = mode


def evaluate(path: Path, config: Config, recalibrated: bool, accelerator: str = "cpu") -> dict[str, dict[str, float]]:
    """Losses of all splits from a checkpoint, by the statistics that BatchNorm used: running, then recalibrated.

    Raises:
        ValueError: for a checkpoint that can't be read or is of another vocabulary; for a model without BatchNorm
            where it is to be recalibrated.
    """
    module = load_module(path)
    module.to(device_of(accelerator, config, module.model))
    words = load_words(config.data)
    if (vocabulary := Vocabulary.of(words)) != module.vocabulary:
        raise ValueError(
            f"{path} has another vocabulary, {module.vocabulary.characters!r}, than these words, "
            f"{vocabulary.characters!r}."
        )
    splits = split_examples(words, config.data.block_size)
    losses = {"running statistics": {split: split_loss(module.model, *xy) for split, xy in splits.items()}}
    if recalibrated:
        recalibrate(module.model, splits["train"][0])
        losses["recalibrated"] = {split: split_loss(module.model, *xy) for split, xy in splits.items()}
    return losses


def print_losses(losses: dict[str, dict[str, float]]) -> None:
    """A table on standard output: a row for each kind of statistics, a column for each split."""
    table = Table(title="losses in nats, whole splits, eval mode")
    table.add_column("")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for statistics, row in losses.items():
        table.add_row(statistics, *(number(row[split]) for split in SPLITS))
    show(table)
