"""What a LightningModule may offer to the instruments. It needs none of it, and nothing has to be registered.

An offer is recognised by name, signature and an annotated result, so a layer or a method of one's own that happens to
be called `probe` is not taken for one.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


class Strided(Protocol):
    """Takes several optimizer steps a batch, of which Lightning sees the last one."""

    def watched_step(self, batch: Any) -> int:
        """The number of that step, counted from 0."""


class Probed(Protocol):
    """Has a fixed set of examples on which two ways to run its network can be compared."""

    def probe(self) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
        """The network, and a function from such a network to its 0-d loss on these examples."""


class Averaged(Protocol):
    """Knows the mean training loss of all steps since the watched one before."""

    mean_loss: float


class Configured(Protocol):
    """Belongs to a project whose settings the doctor's prescriptions can change."""

    def configuration(self) -> dict[str, dict[str, Any]]:
        """Section -> setting -> value: data, model, optim and trainer, as in conf/."""


def offer(module: nn.Module, name: str, *arguments: Any) -> Callable[..., Any] | None:
    """The module's own method of that name, where it takes these arguments and says what it returns; else None."""
    method = getattr(module, name, None)
    if not inspect.ismethod(method):
        return None
    signature = inspect.signature(method)
    try:
        signature.bind(*arguments)
    except TypeError:
        return None
    return method if signature.return_annotation is not inspect.Signature.empty else None


def configuration_of(module: nn.Module) -> dict[str, dict[str, Any]] | None:
    """What `Configured` describes; None from a module whose method of that name gives something else."""
    offered = offer(module, "configuration")
    found = offered() if offered else None
    sections = ("data", "model", "optim", "trainer")
    return found if isinstance(found, dict) and all(isinstance(found.get(each), dict) for each in sections) else None
