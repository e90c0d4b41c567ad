"""What a LightningModule can offer to the instruments. All of it is optional, and nothing has to be registered.

An offer is a method that is recognised by its name, its signature and its annotated return type. So a layer or another
method that happens to be called `probe` is not taken for an offer.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


class Strided(Protocol):
    """Takes several optimizer steps a batch. Lightning sees only the last of them."""

    @property
    def watch_every(self) -> int:
        """So many steps lie between two last ones, early steps aside."""

    def watched_step(self, batch: Any) -> int:
        """The number of that last step, counted from 0."""


class Probed(Protocol):
    """Has a fixed set of examples on which two ways to run its network can be compared."""

    def probe(self) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
        """The network, and a function from such a network to its 0-d loss on these examples."""


class Averaged(Protocol):
    """Knows the mean training loss of all steps since the last watched step."""

    mean_loss: float


class Configured(Protocol):
    """Belongs to a project whose settings the doctor's prescriptions can change."""

    def configuration(self) -> dict[str, dict[str, Any]]:
        """Section -> setting -> value: data, model, optim and trainer, as in conf/."""


def offer(module: nn.Module, name: str, *arguments: Any) -> Callable[..., Any] | None:
    """The module's method of that name if it takes these arguments and its return type is annotated; else None."""
    method = getattr(module, name, None)
    if not inspect.ismethod(method):
        return None
    signature = inspect.signature(method)
    try:
        signature.bind(*arguments)
    except TypeError:
        return None
    return method if signature.return_annotation is not inspect.Signature.empty else None


def watch_every_of(module: nn.Module) -> int:
    """`Strided.watch_every`; 1 of a module that is not `Strided`."""
    found = getattr(module, "watch_every", 1)
    return found if type(found) is int and offer(module, "watched_step", None) else 1


def mean_loss_of(module: nn.Module) -> float | None:
    """What `Averaged` describes, of a module that is `Strided`; None from others."""
    found = getattr(module, "mean_loss", None)
    return found if type(found) is float and offer(module, "watched_step", None) else None


def configuration_of(module: nn.Module) -> dict[str, dict[str, Any]] | None:
    """What `Configured.configuration` returns; None if the module has no such method or it returns something else."""
    offered = offer(module, "configuration")
    found = offered() if offered else None
    sections = ("data", "model", "optim", "trainer")
    return found if isinstance(found, dict) and all(isinstance(found.get(each), dict) for each in sections) else None
