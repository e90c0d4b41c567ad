"""Copies a module without its hooks."""

import copy
from collections import OrderedDict
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copy_without_hooks(module: M, share_tensors: bool = False) -> M:
    """A copy of the module without its hooks; with `share_tensors` it has the same parameter and buffer objects."""
    tensors = [*module.parameters(), *module.buffers()] if share_tensors else []
    hooks: dict[int, Any] = {id(getattr(each, kind)): OrderedDict() for each in module.modules() for kind in HOOKS}
    return copy.deepcopy(module, hooks | {id(tensor): tensor for tensor in tensors})
