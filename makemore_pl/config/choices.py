"""The names that settings choose from.

What a name stands for is in the table that is named beside it; a test says which entry is missing there. These are
lists of their own because the tables import torch, and config.py must not.
"""

import difflib
from collections.abc import Iterable

SOURCES = ("names", "lecture")
"""data.source: SOURCES in words.py."""
ACTIVATIONS = ("tanh", "relu", "leaky_relu", "gelu", "silu", "sigmoid", "identity")
"""model.activation: ACTIVATIONS in activations.py."""
INITS = ("kaiming", "xavier", "small", "normal")
"""model.init: INITS in initialization.py."""
SCHEDULES = ("constant", "step_decay", "cosine")
"""optim.schedule: SCHEDULES in module.py."""
BATCHNORM_PLACEMENTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "pre": ("pre",),
    "post": ("post",),
    "output": ("output",),
    "pre_output": ("pre", "output"),
}
"""model.batchnorm, and the places where each choice puts BatchNorm."""
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov", "weight_decay"),
    "adam": ("beta1", "beta2", "eps", "weight_decay"),
    "adamw": ("beta1", "beta2", "eps", "weight_decay"),
    "rmsprop": ("alpha", "momentum", "eps", "weight_decay"),
}
"""optim.name, and the settings of OptimConfig that each has beside lr: METHODS in stride/optimizers.py."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """' Did you mean ...?' with the nearest choice, '' where none is close."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_of(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError, with the nearest choice, where the value is none of them."""
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}.{did_you_mean(value, choices)}")
