"""One training of a module, and what it ended at."""

import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.doctor.learner import Learner, softmax_in_network
from benchmarks.doctor.recipe import Recipe

Data = tuple[Tensor, Tensor]
STEPS, EPOCHS = 320, 4
HELD_OUT = 512


def fit(
    recipe: Recipe,
    make: Callable[[Recipe], Learner],
    data: Callable[[int, int], Data],
    seed: int,
    callbacks: Sequence[Callback],
) -> Learner:
    """Train by a recipe, with nothing of Lightning's but the loops."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    a_pass = STEPS // EPOCHS
    few = round(recipe.strength("few examples", 0))
    x, y = recipe.spoil(*data(few or a_pass * recipe.batch_size, 10 * seed + 1), seed)
    held_x, held_y = recipe.spoil(*data(HELD_OUT, 10 * seed + 2), seed + 1)
    module = make(recipe)
    loader = DataLoader(TensorDataset(x, y), recipe.minibatch, shuffle=True, drop_last=not few)
    passes = max(1, STEPS // min(a_pass, len(loader)))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            max_epochs=passes, max_steps=STEPS * module.steps_a_batch, callbacks=[*callbacks], logger=False,
            limit_train_batches=a_pass, check_val_every_n_epoch=max(1, passes // 12), enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0,
            default_root_dir=scratch, gradient_clip_val=recipe.strength("clipped too low", 0) or None,
        )  # fmt: skip
        held = DataLoader(TensorDataset(recipe.seen_in_validation(held_x), held_y), HELD_OUT)
        trainer.fit(module, loader, held)
    return module


@torch.no_grad()
def harm(recipe: Recipe, module: Learner, data: Callable[[int, int], Data], seed: int) -> tuple[float, float | None]:
    """The healthy training's own loss on held-out examples, in its units, and that of the best constant guess."""
    module.eval()
    x, y = data(2 * HELD_OUT, 10 * seed + 3)
    given, _ = recipe.spoil(x, y, seed + 2)
    given = torch.nan_to_num(given) if given.is_floating_point() else given
    if recipe.task == "own":
        loss, guess = module.harm(recipe.seen_in_validation(given), y)
    else:
        predicted = module(recipe.seen_in_validation(given))
        loss, guess = _loss(recipe, predicted, y), _guess(recipe, y)
    return (loss if math.isfinite(loss) else math.inf), guess


def _loss(recipe: Recipe, predicted: Tensor, y: Tensor) -> float:
    if recipe.task == "classes":
        predicted, y = predicted.flatten(0, -2), y.flatten()
        if softmax_in_network(recipe):
            return float(functional.nll_loss((predicted + 1e-9).log(), y))
        return float(functional.cross_entropy(predicted, y))
    if recipe.task == "binary":
        return float(functional.binary_cross_entropy_with_logits(predicted, y))
    return float(functional.mse_loss(recipe.unscaled(predicted), y))


def _guess(recipe: Recipe, y: Tensor) -> float:
    if recipe.task == "classes":
        return float(torch.distributions.Categorical(y.flatten().bincount().double()).entropy())
    if recipe.task == "binary":
        return float(torch.distributions.Bernoulli(y.double().mean()).entropy())
    return float(y.var())
