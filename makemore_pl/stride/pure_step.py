"""One optimizer step as a pure function of tensors."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.functional import cross_entropy

from makemore_pl.stride.optimizers import Rule, State, Tensors, clip_gradients, update

Step = Callable[[Tensors, Tensors, State, Tensor, Tensor, Tensor, Tensors], tuple[Tensors, Tensors, State, Tensor]]


def functional_step(model: nn.Module, rule: Rule, autocast: torch.dtype | None = None) -> Step:
    """(parameters, buffers, state, x (B, block_size), y (B,), rates (3,), masks) -> (parameters, buffers, state, loss).

    Args:
        model: used for its architecture only, because parameters and buffers are arguments of the step.
        rule: the optimizer and the clipping.
        autocast: the dtype for torch.autocast; None for no autocast.
    """

    def loss_of(parameters: Tensors, buffers: Tensors, x: Tensor, y: Tensor) -> tuple[Tensor, Tensors]:
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None, cache_enabled=False):
            logits = functional_call(model, (parameters, buffers), (x,))
            return cross_entropy(logits, y), buffers

    def step(
        parameters: Tensors, buffers: Tensors, state: State, x: Tensor, y: Tensor, rates: Tensor, masks: Tensors
    ) -> tuple[Tensors, Tensors, State, Tensor]:
        # BatchNorm writes its running statistics in place, so it gets clones, and the step stays pure
        written = {name: buffer.clone() for name, buffer in buffers.items()}
        gradients, (loss, written) = grad_and_value(loss_of, has_aux=True)(parameters, written | masks, x, y)
        buffers = {name: written[name] for name in buffers}
        parameters, state = update(rule, parameters, clip_gradients(gradients, rule), state, rates)
        return parameters, buffers, state, loss

    return step
