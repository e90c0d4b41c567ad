"""Whole-split losses, and BatchNorm statistics of the whole training split."""

from itertools import pairwise
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from makemore_pl.accelerator import device_of
from makemore_pl.checkpoint import load_module
from makemore_pl.config import Config
from makemore_pl.data import SPLITS, Vocabulary, split_examples
from makemore_pl.output import show
from makemore_pl.words import load_words

CHUNK = 2_048
"""Contexts at once: few enough for their activations to stay in a processor's cache."""


@torch.no_grad()
def split_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean cross-entropy in nats over a whole split, in eval mode, where equal contexts have equal logits.

    Args:
        x, y: (N, block_size) and (N,), on any device.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    # of the training split's contexts of three characters one in thirty is distinct
    contexts, which = distinct(x.to(device))
    order = which.argsort()
    which, y = which[order], y.to(device)[order]
    total = torch.zeros((), dtype=torch.float64, device=device)
    firsts = torch.arange(0, len(contexts) + CHUNK, CHUNK, device=device)
    bounds = torch.searchsorted(which, firsts).tolist()  # all at once: a GPU is waited for once
    for first, (start, end) in zip(range(0, len(contexts), CHUNK), pairwise(bounds), strict=True):
        log_probabilities = model(contexts[first : first + CHUNK]).double().log_softmax(1)
        total -= log_probabilities[which[start:end] - first, y[start:end]].sum()
    model.train(training)
    return total.item() / len(y)


def distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows (M, block_size) of x (N, block_size), and which of them (N,) each row is."""
    which = torch.zeros_like(x[:, 0])
    for column in x.unbind(1):
        which = (which * (x.max() + 1) + column).unique(return_inverse=True)[1]
    found = torch.empty_like(which[: which.max() + 1])
    found[which] = torch.arange(len(x), device=x.device)
    return x[found], which


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
        table.add_row(statistics, *(f"{row[split]:.4f}" for split in SPLITS))
    show(table)
