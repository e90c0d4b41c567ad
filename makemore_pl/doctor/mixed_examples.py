"""Whether an example's output depends on its neighbours in the minibatch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from makemore_pl.doctor.inspection import Inspection, tensors_in
from makemore_pl.module_copy import copy_without_hooks

LARGEST = 50_000_000
"""Parameters up to which a copy is run."""


def mixed_examples(inspection: Inspection, batch: Any, size: int) -> str | None:
    """Where one example's output depends on another, by running copies in eval mode; None where nowhere.

    Args:
        batch: as the data loader gives it, to see what of it is read in another shape.
        size: examples of a minibatch.

    Raises:
        ValueError: no call could be tried, and why.
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
        if any(each.shape[:2] == (size, size) for each in (*given, *module.buffers())):  # as an adjacency matrix
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
    """Whether other examples' outputs change with the first example, or why that can't be said."""
    with _undisturbed(module), _NoDraws():  # type: ignore[no-untyped-call]
        network = copy_without_hooks(module).eval()
        norms = [each for each in network.modules() if isinstance(each, _BatchNorm)]
        if any(each.training or each.running_mean is None for each in norms):
            return "a BatchNorm takes the minibatch's statistics in eval mode too"

        def run(change: bool) -> list[Tensor]:
            given = [_changed(each) if change and isinstance(each, Tensor) else each for each in args]
            named = {
                key: _changed(each) if change and isinstance(each, Tensor) else each for key, each in kwargs.items()
            }
            return tensors_in(network(*given, **named))

        compared = False
        for one, two, three in zip(run(False), run(False), run(True), strict=True):
            axes = [axis for axis in range(min(one.ndim, 2)) if one.size(axis) == size]
            if len(axes) != 1 or not one.is_floating_point():
                continue  # of two dimensions of this size nobody knows which is the minibatch
            rest = [each.narrow(axes[0], 1, size - 1).double() for each in (one, two, three)]
            if not torch.equal(rest[0], rest[1]):
                return "the network is random in eval mode too"
            compared = True
            if bool(((rest[0] - rest[2]).abs() > 1e-3 * (rest[0].abs().mean() + 1e-12)).any()):
                return True
    return False if compared else "no output has one dimension that is the minibatch's"


def _changed(x: Tensor) -> Tensor:
    """The same minibatch with another first example."""
    x = x.detach().clone()
    other = next((row for row in x[1:] if not torch.equal(row, x[0])), None)
    if other is not None:
        x[0] = other
    return x


def _reinterpreted(x: Tensor, original: Tensor, size: int) -> bool:
    """Whether x is the same memory read in another shape, in which examples no longer lie along one dimension."""
    if x.data_ptr() != original.data_ptr() or x.numel() != original.numel() or original.size(0) != size:
        return False
    if not (x.is_contiguous() and original.is_contiguous()) or x.ndim < 2 or x.shape == original.shape:
        return False
    return x.size(0) % size != 0 and x.size(1) == size


class _NoDraws(TorchDispatchMode):
    """Refuses to draw from a generator that was handed over: its state is the training's, and nobody can restore it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(each, torch.Generator) for each in (*args, *(kwargs or {}).values())):
            raise ValueError("the network draws from a generator of its own")
        return func(*args, **(kwargs or {}))


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """No gradients, and every generator as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = {each.device for each in (*module.parameters(), *module.buffers()) if each.is_cuda}
    try:
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
