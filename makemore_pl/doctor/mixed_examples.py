"""Tests whether an example's output depends on other examples of the minibatch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from makemore_pl.doctor.inspection import Inspection
from makemore_pl.doctor.minibatch import tensors_in
from makemore_pl.module_copy import copy_without_hooks

LARGEST = 50_000_000
"""Networks with more parameters than this are not copied."""


def mixed_examples(inspection: Inspection, batch: Any, size: int, collated: bool = False) -> str | None:
    """The name of a module in which one example's output depends on another; None if there is none.

    A copy of each outermost module is run in eval mode, with and without a change of the first or the last example.

    Args:
        batch: as the data loader gives it, to see what of it is read in another shape.
        size: examples of a minibatch.
        collated: whether the loader has put so many examples together, along the first dimension.

    Raises:
        ValueError: no module could be tested; the message says why.
    """
    tensors = tensors_in(batch)
    tried, why = 0, "no module was called with a minibatch"
    for module, args, kwargs in inspection.outer:
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        name = inspection.names.get(module) or type(module).__name__
        if any(_reinterpreted(each, tensor, size) for each in given for tensor in tensors):
            return f"the input of {name}"
        if not given or any(not isinstance(each, Tensor) for each in (*args, *kwargs.values()) if each is not None):
            why = "modules are called with more than tensors"
            continue
        if any(each.ndim == 0 or each.size(0) != size for each in given) or size < 3:
            why = "the first dimension of what modules get is not the minibatch's"
            continue
        as_loaded = collated and all(any(_same(each, tensor) for tensor in tensors) for each in given)
        square = any(each.shape[:2] == (size, size) for each in (*given, *module.buffers()))
        if square and not as_loaded:  # as an adjacency matrix
            why = "two dimensions of what modules get are as long as the minibatch"
            continue
        if sum(parameter.numel() for parameter in module.parameters()) > LARGEST:
            why = "the network is too large to be copied"
            continue
        depends = _depends(module, args, kwargs, size)
        if isinstance(depends, str):
            why = depends
            continue
        tried += 1
        if depends:
            return name
    if not tried:
        raise ValueError(why)
    return None


def _depends(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> bool | str:
    """Whether other examples' outputs change with the first example or the last, or why that can't be said."""
    with _undisturbed(module), _NoDraws():  # type: ignore[no-untyped-call]
        network = copy_without_hooks(module).eval()
        norms = [each for each in network.modules() if isinstance(each, _BatchNorm)]
        if any(each.training or each.running_mean is None for each in norms):
            return "a BatchNorm takes the minibatch's statistics in eval mode too"

        def run(changed: int | None = None) -> list[Tensor]:
            given = [_changed(each, changed) for each in args]
            return tensors_in(network(*given, **{key: _changed(each, changed) for key, each in kwargs.items()}))

        compared = False
        # a recurrent network forgets: where steps are taken for examples, the last one tells more than the first
        for one, two, first, last in zip(run(), run(), run(0), run(size - 1), strict=True):
            axes = [axis for axis in range(min(one.ndim, 2)) if one.size(axis) == size]
            if len(axes) != 1 or not one.is_floating_point():
                continue  # if two dimensions have this size, it is not clear which one is the minibatch
            if not torch.equal(one, two):
                return "the network is random in eval mode too"
            compared = True
            slack = 1e-3 * (one.double().abs().mean() + 1e-12)
            for other, begin in ((first, 1), (last, 0)):
                rest = [each.narrow(axes[0], begin, size - 1).double() for each in (one, other)]
                if bool(((rest[0] - rest[1]).abs() > slack).any()):
                    return True
    return False if compared else "no output has one dimension that is the minibatch's"


def _changed(x: Any, place: int | None) -> Any:
    """The same minibatch with another example at this place."""
    if place is None or not isinstance(x, Tensor):
        return x
    x = x.detach().clone()
    other = next((row for row in x if not torch.equal(row, x[place])), None)
    if other is not None:
        x[place] = other
    return x


def _same(x: Tensor, original: Tensor) -> bool:
    return x.data_ptr() == original.data_ptr() and x.shape == original.shape and x.stride() == original.stride()


def _reinterpreted(x: Tensor, original: Tensor, size: int) -> bool:
    """Whether x has the memory of `original` in another shape, in which no dimension runs over the examples."""
    if x.data_ptr() != original.data_ptr() or x.numel() != original.numel() or original.size(0) != size:
        return False
    if not (x.is_contiguous() and original.is_contiguous()) or x.ndim < 2 or x.shape == original.shape:
        return False
    return x.size(0) % size != 0 and x.size(1) == size


class _NoDraws(TorchDispatchMode):
    """Refuses calls with a generator as an argument: they would change its state, which the training uses too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(each, torch.Generator) for each in (*args, *(kwargs or {}).values())):
            raise ValueError("the network draws from a generator of its own")
        return func(*args, **(kwargs or {}))


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Without gradients; afterwards every global generator has its old state again."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = {each.device for each in (*module.parameters(), *module.buffers()) if each.is_cuda}
    try:
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
