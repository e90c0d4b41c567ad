"""How the MLP's parameters are drawn, in the order of the lecture's random numbers."""

import math

import torch
from torch import nn

GAINS = {"tanh": 5 / 3, "relu": math.sqrt(2), "gelu": 1.5335, "identity": 1.0}
"""1 / sqrt(E[activation(z)^2]) for z ~ N(0, 1), as torch.nn.init.calculate_gain has it; tanh's 5/3 is PyTorch's and
the lecture's rounding up of 1.593. calculate_gain has no gelu: E[gelu(z)^2] = 0.4252."""


def gain_of(init: str, gain: float | None, activation: str) -> float:
    """The gain as configured, or where that is None the activation's own, which only kaiming and xavier have."""
    if gain is None:
        return GAINS[activation] if init in ("kaiming", "xavier") else 1.0
    return gain


def weight_std(init: str, gain: float | None, activation: str, fan_in: int, fan_out: int) -> float:
    """Standard deviation of a hidden layer's weights.

    kaiming: He et al. 2015, eq. 10, with fan_in. xavier: Glorot & Bengio 2010, eq. 12. small: the lecture's first
    remedy, 0.01. normal: no scaling, the lecture's starting point.
    """
    gain = gain_of(init, gain, activation)
    scale = {
        "kaiming": 1 / math.sqrt(fan_in),
        "xavier": math.sqrt(2 / (fan_in + fan_out)),
        "small": 0.01,
        "normal": 1.0,
    }
    return gain * scale[init]


@torch.no_grad()
def draw_embedding_(embedding: nn.Embedding, generator: torch.Generator) -> None:
    """N(0, 1), shape (vocab_size, n_embd)."""
    embedding.weight.copy_(torch.randn(embedding.weight.shape, generator=generator))


@torch.no_grad()
def draw_linear_(linear: nn.Linear, weight_std: float, bias_std: float, generator: torch.Generator) -> None:
    """N(0, weight_std^2) and N(0, bias_std^2).

    The weight is drawn as (fan_in, fan_out), the lecture's layout, and a bias is drawn also where bias_std is 0, so
    that the stream of random numbers stays the lecture's.
    """
    weight = torch.randn((linear.in_features, linear.out_features), generator=generator) * weight_std
    linear.weight.copy_(weight.T)
    if linear.bias is not None:
        linear.bias.copy_(torch.randn(linear.out_features, generator=generator) * bias_std)
