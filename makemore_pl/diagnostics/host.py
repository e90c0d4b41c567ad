"""Which Lightning there is: `lightning.pytorch`, `pytorch_lightning`, or both in one process.

They are the same code under two names, and each Trainer takes only callbacks and loggers of its own classes. So our
classes inherit from those of every Lightning that has been imported when one of our objects is made. Neither Lightning
is imported only for this, because that takes seconds.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

PACKAGES = ("lightning.pytorch", "pytorch_lightning")

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger
else:
    _host = next((name for name in PACKAGES if name in sys.modules), None)
    if _host is None:
        try:
            _host = import_module(PACKAGES[0]).__name__
        except ModuleNotFoundError:
            _host = import_module(PACKAGES[1]).__name__
    Callback, LightningModule, Trainer = (
        getattr(sys.modules[_host], kind) for kind in ("Callback", "LightningModule", "Trainer")
    )
    Logger = import_module(f"{_host}.loggers").Logger

__all__ = ["Callback", "LightningModule", "Logger", "Trainer", "join", "lightning_s_own"]


def join(ours: type, module: str) -> None:
    """Let `ours` inherit from the Callback ("callbacks") or Logger ("loggers") of each Lightning imported so far."""
    name = {"callbacks": "Callback", "loggers": "Logger"}[module]
    for host in PACKAGES:
        if theirs := sys.modules.get(f"{host}.{module}"):
            base = getattr(theirs, name)
            if base not in ours.__mro__:  # issubclass would not do: abstract classes cache its first answer
                ours.__bases__ = (*ours.__bases__, base)


def lightning_s_own(method: object) -> bool:
    """Whether a method of a LightningModule is the one that it inherits from Lightning."""
    return str(getattr(method, "__module__", "")).startswith(PACKAGES)
