"""A copy of a module that no hook sees."""

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def unhooked(module: M, share_tensors: bool = False) -> M:
    """A copy without hooks; with `share_tensors`, on the very same parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()] if share_tensors else []
    duplicate = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    for each in duplicate.modules():
        for hooks in HOOKS:
            getattr(each, hooks).clear()
    return duplicate
