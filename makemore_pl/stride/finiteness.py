"""Finds the first number of a network that is NaN or infinite."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from makemore_pl.stride import torch_internals


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every element is finite."""
    tensors = [tensor.detach() for tensor in tensors]
    # checking the norms is fast, but squares of finite numbers can overflow, so check elements if a norm is not finite
    quick = torch.isfinite(torch.stack(torch_internals.foreach_norm(tensors))).all()
    return bool(quick) or all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def first_not_finite_parameter(model: nn.Module) -> str | None:
    """The first parameter, in the order of the layers, that is not finite."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the parameter {name}"
    return None


def first_not_finite_gradient(model: nn.Module) -> str | None:
    """Among the parameters whose gradient is not finite, the one nearest to the loss."""
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name}"
    return None


@torch.enable_grad()
def first_not_finite(model: nn.Module, x: Tensor, y: Tensor) -> str | None:
    """The first parameter, layer output, loss or gradient, in the order of computation, that is not finite.

    It runs forward and backward on one minibatch, x (B, block_size) and y (B,). As in a step, gradients are set and
    BatchNorm's running statistics change.
    """
    if found := first_not_finite_parameter(model):
        return found
    outputs: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_hook(_recorder(name, outputs))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        loss = cross_entropy(model(x), y)
    finally:
        for handle in handles:
            handle.remove()
    for name, output in [*outputs, ("the loss", loss)]:
        if not torch.isfinite(output).all():
            return name
    model.zero_grad()
    loss.backward()
    return first_not_finite_gradient(model)


def _recorder(name: str, outputs: list[tuple[str, Tensor]]) -> Any:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append((f"the output of {name}", output.detach()))

    return record
