"""How the MLP's parameters are drawn, in the order of the lecture's random numbers."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from makemore_pl.activations import ACTIVATIONS


class Init(NamedTuple):
    """One choice of model.init."""

    scale: Callable[[int, int], float]
    """Standard deviation of the weights for gain 1, from fan_in and fan_out."""
    gain_of_activation: bool
    """What the gain is if model.gain is null: the activation's own (True) or 1 (False)."""


INITS = {
    # He et al. 2015, eq. 10, with fan_in
    "kaiming": Init(lambda fan_in, fan_out: 1 / math.sqrt(fan_in), True),
    # Glorot & Bengio 2010, eq. 12
    "xavier": Init(lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out)), True),
    # the lecture's first remedy
    "small": Init(lambda fan_in, fan_out: 0.01, False),
    # no scaling, the lecture's starting point
    "normal": Init(lambda fan_in, fan_out: 1.0, False),
}
"""model.init -> initialization. The names are also in INIT_NAMES of config/choices.py."""


def gain_of(init: str, gain: float | None, activation: str) -> float:
    """The configured gain; if that is None, the activation's own for kaiming and xavier, and 1 for the others."""
    if gain is not None:
        return gain
    return ACTIVATIONS[activation].gain if INITS[init].gain_of_activation else 1.0


def weight_std(init: str, gain: float | None, activation: str, fan_in: int, fan_out: int) -> float:
    """Standard deviation of a hidden layer's weights."""
    return gain_of(init, gain, activation) * INITS[init].scale(fan_in, fan_out)


@torch.no_grad()
def draw_embedding_(embedding: nn.Embedding, generator: torch.Generator) -> None:
    """N(0, 1), shape (vocab_size, n_embd)."""
    embedding.weight.copy_(torch.randn(embedding.weight.shape, generator=generator))


@torch.no_grad()
def draw_linear_(linear: nn.Linear, weight_std: float, bias_std: float, generator: torch.Generator) -> None:
    """N(0, weight_std^2) and N(0, bias_std^2).

    The weight is drawn as (fan_in, fan_out), which is the lecture's layout, and a bias is drawn even if bias_std is 0.
    So the random numbers are the lecture's.
    """
    weight = torch.randn((linear.in_features, linear.out_features), generator=generator) * weight_std
    linear.weight.copy_(weight.T)
    if linear.bias is not None:
        linear.bias.copy_(torch.randn(linear.out_features, generator=generator) * bias_std)
