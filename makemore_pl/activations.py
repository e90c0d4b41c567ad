"""The activations: the module of each, and the gain that the weights before it need."""

import math
from typing import NamedTuple

from torch import nn


class Activation(NamedTuple):
    """One choice of model.activation."""

    module: type[nn.Module]
    gain: float
    """1 / sqrt(E[f(z)^2]) for z ~ N(0, 1). With this gain the mean square of the activations stays 1 in each layer."""


ACTIVATIONS = {
    # PyTorch and the lecture round 1.593 up to 5/3
    "tanh": Activation(nn.Tanh, 5 / 3),
    "relu": Activation(nn.ReLU, math.sqrt(2)),
    # negative slope 0.01
    "leaky_relu": Activation(nn.LeakyReLU, math.sqrt(2 / (1 + 0.01**2))),
    # E[f(z)^2] = 0.4252. torch.nn.init.calculate_gain knows neither gelu nor silu.
    "gelu": Activation(nn.GELU, 1.5335),
    # E[f(z)^2] = 0.3558
    "silu": Activation(nn.SiLU, 1.6765),
    # E[f(z)^2] = 0.2934. calculate_gain gives 1 by convention; with 1 each layer multiplies the mean square by 0.29.
    "sigmoid": Activation(nn.Sigmoid, 1.8462),
    "identity": Activation(nn.Identity, 1.0),
}
"""model.activation -> activation. The names are also in ACTIVATION_NAMES of config/choices.py."""
