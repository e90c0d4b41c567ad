"""The activations: of each its module, and the gain that weights in front of it need."""

import math
from typing import NamedTuple

from torch import nn


class Activation(NamedTuple):
    """One choice of model.activation."""

    module: type[nn.Module]
    gain: float
    """1 / sqrt(E[f(z)^2]) for z ~ N(0, 1): with it a layer's mean square stays 1."""


ACTIVATIONS = {
    # PyTorch's and the lecture's rounding up of 1.593
    "tanh": Activation(nn.Tanh, 5 / 3),
    "relu": Activation(nn.ReLU, math.sqrt(2)),
    # negative slope 0.01
    "leaky_relu": Activation(nn.LeakyReLU, math.sqrt(2 / (1 + 0.01**2))),
    # E = 0.4252; torch.nn.init.calculate_gain has no gelu and no silu
    "gelu": Activation(nn.GELU, 1.5335),
    # E = 0.3558
    "silu": Activation(nn.SiLU, 1.6765),
    # E = 0.2934. calculate_gain says 1, by convention; with 1 the mean square falls to 0.29 in each layer.
    "sigmoid": Activation(nn.Sigmoid, 1.8462),
    "identity": Activation(nn.Identity, 1.0),
}
"""Their names are ACTIVATIONS of choices.py."""
