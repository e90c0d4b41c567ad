"""Unwatched steps: many optimizer steps in one call, in a bare loop or as one compiled graph."""

import math
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.utils import _pytree as pytree

from makemore_pl.module_copy import copy_without_hooks
from makemore_pl.stride.compiling import compiled_scan
from makemore_pl.stride.finiteness import all_finite, first_not_finite
from makemore_pl.stride.optimizers import Rule, State, Tensors
from makemore_pl.stride.pure_step import functional_step

LONGEST = 150
"""Steps at most in one call: bounds the memory for its dropout masks, and what a stride leaves over."""


def call_length(watch_every: int) -> int:
    """Steps of one compiled call, so that few of a full stride's are left over, to run one by one; 0: none fits."""
    lengths = range(1, min(watch_every - 1, LONGEST) + 1)
    # a step by itself costs about as much as two calls more
    return min(lengths, key=lambda n: 2 * ((watch_every - 1) % n) + (watch_every - 1) // n, default=0)


class GivenDropout(nn.Module):
    """Dropout whose mask is a buffer: drawn for a whole stride ahead, the same random numbers in every engine."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask if self.training else x

    def draw_(self, mask: Tensor) -> None:
        """Fill with 0 or 1 / (1 - p), by the very calls to torch's global generator that nn.Dropout makes."""
        mask.bernoulli_(1 - self.p).div_(1 - self.p)


class Unwatched:
    """Runs unwatched steps on a live model and its optimizer, updating parameters, buffers and state in place.

    Hooks on the model don't see them.

    Args:
        model: (B, block_size) -> (B, vocab_size) logits.
        optimizer: SGD, Adam or AdamW with one parameter group.
        compiled_length: this many steps at a time run as one compiled call, what is left over one by one; 0: all do.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        clip_value: float | None = None,
        clip_algorithm: str = "norm",
        compiled_length: int = 0,
    ) -> None:
        self.rule = Rule.of(optimizer, clip_value, clip_algorithm)
        self.model = copy_without_hooks(model, share_tensors=True)
        self.dropouts: dict[str, GivenDropout] = {}
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.Dropout):
                self.dropouts[f"{name}.mask"] = given = GivenDropout(module.p)
                self.model.set_submodule(name, given)
        self.optimizer = optimizer
        self.compiled_length = compiled_length
        self.parameters = dict(self.model.named_parameters())
        self.buffers = {name: buffer for name, buffer in self.model.named_buffers() if name not in self.dropouts}
        self.name = repr((self.model, self.rule))

    def __call__(self, x: Tensor, y: Tensor, lrs: list[float], first: int) -> Tensor:
        """Take k steps on x (k, B, block_size), y (k, B) with k learning rates; returns the k losses.

        Raises:
            FloatingPointError: naming step (`first` is the number of the first one) and layer, where a loss or a
                parameter is not finite.
        """
        self.model.train()
        length = self.compiled_length or LONGEST
        calls = [slice(done, done + length) for done in range(0, len(lrs), length)]
        return torch.cat([self._call(x[call], y[call], lrs[call], first + call.start) for call in calls])

    def _call(self, x: Tensor, y: Tensor, lrs: list[float], first: int) -> Tensor:
        before = [tensor.detach().clone() for tensor in self._tensors()]
        masks = self._draw_masks(x)
        losses = (self._compiled if len(lrs) == self.compiled_length else self._eager)(x, y, lrs, masks)
        if not all_finite([losses, *self.parameters.values()]):
            with torch.no_grad():
                for tensor, old in zip(self._tensors(), before, strict=False):
                    tensor.copy_(old)
            self._replay(x, y, lrs, masks, first, losses)
        return losses

    def _tensors(self) -> list[Tensor]:
        tensors = [*self.parameters.values(), *self.buffers.values()]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return tensors

    @torch.no_grad()
    def _draw_masks(self, x: Tensor) -> Tensors:
        """One mask a step for every dropout, by the name of its buffer."""
        shapes: dict[nn.Module, torch.Size] = {}
        if not self.dropouts:
            return {}
        record = [
            given.register_forward_hook(lambda module, _, output: shapes.update({module: output.shape}))
            for given in self.dropouts.values()
        ]
        self.model.eval()(x[0])
        self.model.train()
        for handle in record:
            handle.remove()
        masks = {name: x.new_empty((len(x), *shapes[g]), dtype=torch.float32) for name, g in self.dropouts.items()}
        for i in range(len(x)):
            for name, given in self.dropouts.items():
                given.draw_(masks[name][i])
        return masks

    def _give(self, masks: Tensors, i: int) -> None:
        for name, given in self.dropouts.items():
            given.mask = masks[name][i]

    def _replay(self, x: Tensor, y: Tensor, lrs: list[float], masks: Tensors, first: int, losses: Tensor) -> NoReturn:
        for i in range(len(lrs)):
            self._give(masks, i)
            if found := first_not_finite(self.model, x[i], y[i]):
                raise FloatingPointError(f"step {first + i}: {found} is not finite.")
            masks_of_step = {name: mask[i : i + 1] for name, mask in masks.items()}
            self._eager(x[i : i + 1], y[i : i + 1], lrs[i : i + 1], masks_of_step)
        if found := first_not_finite(self.model, x[-1], y[-1]):
            raise FloatingPointError(f"step {first + len(lrs)}: {found} is not finite.")
        step = first + int(torch.isfinite(losses).logical_not().nonzero().min())
        raise FloatingPointError(f"step {step}: the loss is not finite.")

    @torch.enable_grad()
    def _eager(self, x: Tensor, y: Tensor, lrs: list[float], masks: Tensors) -> Tensor:
        parameters: list[Tensor] = list(self.parameters.values())
        clip = nn.utils.clip_grad_norm_ if self.rule.clip_algorithm == "norm" else nn.utils.clip_grad_value_
        losses = []
        for i, (x_of_step, y_of_step, lr) in enumerate(zip(x.unbind(), y.unbind(), lrs, strict=True)):
            self._give(masks, i)
            loss = cross_entropy(self.model(x_of_step), y_of_step)
            gradients = torch.autograd.grad(loss, parameters)
            if self.rule.is_plain:
                with torch.no_grad():
                    torch._foreach_add_(parameters, gradients, alpha=-lr)  # the bits of optimizer.step, 0.1 ms earlier
            else:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                if self.rule.clip_value is not None:
                    clip(parameters, self.rule.clip_value)
                self.optimizer.param_groups[0]["lr"] = lr
                self.optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    @torch.no_grad()
    def _compiled(self, x: Tensor, y: Tensor, lrs: list[float], masks: Tensors) -> Tensor:
        parameters = {name: parameter.detach() for name, parameter in self.parameters.items()}
        state, taken = self._state()
        beta1, beta2 = self.rule.betas
        rates = torch.tensor(
            [(lr, 1 - beta1**t, math.sqrt(1 - beta2**t)) for t, lr in enumerate(lrs, start=taken + 1)], device=x.device
        )
        # one package for all runs of this shape: whatever may differ without another graph is an argument
        name = f"{self.name} {x.shape} {x.device}"
        step = functional_step(self.model, self.rule)
        carry, xs = (parameters, self.buffers, state), (x, y, rates, masks)
        new, losses = compiled_scan(name, step, carry, xs)(carry, xs)
        torch._foreach_copy_(pytree.tree_leaves(carry), new)
        for each in self.optimizer.state.values():
            if "step" in each:
                each["step"] += len(lrs)
        return losses

    def _state(self) -> tuple[State, int]:
        """The optimizer's live state tensors by slot and parameter, made where there are none, and its step count."""
        taken = 0
        for parameter in self.parameters.values():
            state = self.optimizer.state[parameter]
            if self.rule.kind is not SGD:
                taken = int(state.setdefault("step", torch.tensor(0.0)).item())
            for slot in self.rule.slots:
                if state.get(slot) is None:
                    state[slot] = torch.zeros_like(parameter)
        named = self.parameters.items()
        return {slot: {name: self.optimizer.state[p][slot] for name, p in named} for slot in self.rule.slots}, taken
