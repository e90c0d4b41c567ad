"""Copies of modules that no hook sees."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copy_without_hooks(module: M, share_tensors: bool = False) -> M:
    """A copy of the module without its hooks; with `share_tensors` it has the same parameter and buffer objects."""
    tensors = [*module.parameters(), *module.buffers()] if share_tensors else []
    hooks: dict[int, Any] = {id(getattr(child, kind)): OrderedDict() for child in module.modules() for kind in HOOKS}
    return copy.deepcopy(module, hooks | {id(tensor): tensor for tensor in tensors})


class Hook:
    """A hook of a module that sees no copy of it: where others copy or pickle the module, a function that does nothing.

    A plain one would take along what it belongs to, up to the trainer, and stay on the copy for good.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> None:
        self.function(*args)

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _inert, ()


def _inert() -> Callable[..., None]:
    return _nothing


def _nothing(*_: object) -> None:
    pass
