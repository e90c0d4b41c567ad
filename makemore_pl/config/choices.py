"""The names that a setting can have.

Below each list stands the table that says what its names mean; a test names the entries that a table lacks. The lists
are apart from the tables because the tables import torch, and config/schema.py must not.
"""

import difflib
from collections.abc import Iterable

SOURCE_NAMES = {
    "names": "the embedded US baby names of 2018",
    "lecture": "the lecture's names.txt, fetched once",
}
"""For data.source: each choice and what docs/config.md says of it. The table is SOURCES in words.py."""
ACTIVATION_NAMES = ("tanh", "relu", "leaky_relu", "gelu", "silu", "sigmoid", "identity")
"""For model.activation. The table is ACTIVATIONS in activations.py."""
INIT_NAMES = ("kaiming", "xavier", "small", "normal")
"""For model.init. The table is INITS in initialization.py."""
SCHEDULE_NAMES = ("constant", "step_decay", "cosine")
"""For optim.schedule. The table is SCHEDULES in module.py."""
BATCHNORM_PLACEMENTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "pre": ("pre",),
    "post": ("post",),
    "output": ("output",),
    "pre_output": ("pre", "output"),
}
"""For model.batchnorm: each choice and the places where it puts BatchNorm."""
OPTIMIZER_SETTINGS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov", "weight_decay"),
    "adam": ("beta1", "beta2", "eps", "weight_decay"),
    "adamw": ("beta1", "beta2", "eps", "weight_decay"),
    "rmsprop": ("alpha", "momentum", "eps", "weight_decay"),
}
"""For optim.name: each optimizer and the fields of OptimConfig that it uses beside lr. The table is METHODS in
stride/optimizers.py."""


SINGLE = ("data", "model", "optim", "trainer", "experiment")
"""Groups of conf/ of which one choice is made. Those of callbacks and logger add up."""
GROUPS = (*SINGLE, "callbacks", "logger")


def refuse_several(overrides: Iterable[str]) -> None:
    """Raises ValueError for a list where one choice is made: of several Hydra would take the last without a word."""
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        group, names = key.partition("@")[0], [choice for choice in value.strip("[] ").split(",") if choice]
        if group in SINGLE and value.startswith("[") and len(names) != 1:
            raise ValueError(f"{override}: {group} takes one choice, not a list of {len(names)}.")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """' Did you mean ...?' with the nearest choice, or '' if none is close."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_of(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError if the value is none of the choices; the message suggests the nearest one."""
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}.{did_you_mean(value, choices)}")
