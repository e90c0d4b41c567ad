"""Unwatched steps: many optimizer steps in one call, in a bare loop or as one compiled graph.

`functional_step` is a pure function of tensors, so that vmap over a leading axis of parameters, buffers, state, and
rates trains many configurations at once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils import _pytree as pytree

from makemore_pl.compiled import compiled_scan
from makemore_pl.nonfinite import first_not_finite
from makemore_pl.unhooked import unhooked

Tensors = dict[str, Tensor]
State = dict[str, Tensors]
"""Optimizer state by slot (momentum_buffer; exp_avg, exp_avg_sq), then by parameter."""
Step = Callable[[Tensors, Tensors, State, Tensor, Tensor, Tensor], tuple[Tensors, Tensors, State, Tensor]]

SLOTS: dict[type[Optimizer], tuple[str, ...]] = {
    SGD: ("momentum_buffer",),
    Adam: ("exp_avg", "exp_avg_sq"),
    AdamW: ("exp_avg", "exp_avg_sq"),
}


def clip_gradients(gradients: Tensors, value: float | None, algorithm: str) -> Tensors:
    """As torch.nn.utils.clip_grad_norm_ and clip_grad_value_ do, out of place."""
    if value is None:
        return gradients
    if algorithm == "value":
        return {name: gradient.clamp(-value, value) for name, gradient in gradients.items()}
    norm = torch.stack([gradient.pow(2).sum() for gradient in gradients.values()]).sum().sqrt()
    scale = (value / (norm + 1e-6)).clamp(max=1.0)
    return {name: gradient * scale for name, gradient in gradients.items()}


class Rule(NamedTuple):
    """How an optimizer steps: what a compiled call is specialized on. Rates are arguments instead."""

    kind: type[Optimizer]
    weight_decay: float
    momentum: float
    nesterov: bool
    betas: tuple[float, float]
    eps: float
    clip_value: float | None
    clip_algorithm: str

    @classmethod
    def of(cls, optimizer: Optimizer, clip_value: float | None, clip_algorithm: str) -> "Rule":
        """Read from a torch.optim optimizer.

        Raises:
            ValueError: for one that `update` can't take steps of.
        """
        group = optimizer.param_groups[0]
        unknown = [key for key in ("amsgrad", "maximize", "dampening") if group.get(key)]
        if type(optimizer) not in SLOTS or len(optimizer.param_groups) > 1 or unknown:
            raise ValueError(
                "Unwatched steps know SGD, Adam and AdamW with one parameter group and without amsgrad, maximize and "
                f"dampening, not {type(optimizer).__name__} as set up here: use trainer.watch_every=1."
            )
        return cls(
            type(optimizer),
            group["weight_decay"],
            group.get("momentum", 0.0),
            group.get("nesterov", False),
            tuple(group.get("betas", (0.0, 0.0))),
            group.get("eps", 0.0),
            clip_value,
            clip_algorithm,
        )

    @property
    def slots(self) -> tuple[str, ...]:
        return () if self.kind is SGD and not self.momentum else SLOTS[self.kind]


def update(rule: Rule, parameters: Tensors, gradients: Tensors, state: State, rates: Tensor) -> tuple[Tensors, State]:
    """One step of torch.optim's SGD, Adam or AdamW, out of place.

    Args:
        rates: (3,) learning rate, and Adam's 1 - beta1^t and sqrt(1 - beta2^t).
    """
    lr, decay = rates[0], rule.weight_decay
    if decay and rule.kind is AdamW:
        parameters = {name: p * (1 - lr * decay) for name, p in parameters.items()}
    elif decay:
        gradients = {name: gradient + decay * parameters[name] for name, gradient in gradients.items()}
    if rule.kind is SGD:
        if rule.momentum:
            buffers = {name: rule.momentum * old + gradients[name] for name, old in state["momentum_buffer"].items()}
            state = {"momentum_buffer": buffers}
            if rule.nesterov:
                gradients = {name: gradients[name] + rule.momentum * buffer for name, buffer in buffers.items()}
            else:
                gradients = buffers
        return {name: p - lr * gradients[name] for name, p in parameters.items()}, state
    beta1, beta2 = rule.betas
    first = {name: old.lerp(gradients[name], 1 - beta1) for name, old in state["exp_avg"].items()}
    second = {name: beta2 * old + (1 - beta2) * gradients[name] ** 2 for name, old in state["exp_avg_sq"].items()}
    step_size = lr / rates[1]
    parameters = {
        name: p - step_size * first[name] / (second[name].sqrt() / rates[2] + rule.eps)
        for name, p in parameters.items()
    }
    return parameters, {"exp_avg": first, "exp_avg_sq": second}


def functional_step(model: nn.Module, rule: Rule) -> Step:
    """(parameters, buffers, state, x (B, block_size), y (B,), rates (3,)) -> (parameters, buffers, state, loss).

    The model is the architecture only: parameters and buffers are the arguments.
    """

    def loss_of(parameters: Tensors, buffers: Tensors, x: Tensor, y: Tensor) -> tuple[Tensor, Tensors]:
        logits = functional_call(model, (parameters, buffers), (x,))
        return cross_entropy(logits, y), buffers

    def step(
        parameters: Tensors, buffers: Tensors, state: State, x: Tensor, y: Tensor, rates: Tensor
    ) -> tuple[Tensors, Tensors, State, Tensor]:
        # BatchNorm writes its running statistics in place: into clones, so that the step stays pure
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        gradients, (loss, buffers) = grad_and_value(loss_of, has_aux=True)(parameters, buffers, x, y)
        gradients = clip_gradients(gradients, rule.clip_value, rule.clip_algorithm)
        parameters, state = update(rule, parameters, gradients, state, rates)
        return parameters, buffers, state, loss

    return step


class Unwatched:
    """Runs unwatched steps on a live model and its optimizer, updating parameters, buffers and state in place.

    Hooks on the model don't see them.

    Args:
        model: (B, block_size) -> (B, vocab_size) logits.
        optimizer: SGD, Adam or AdamW with one parameter group.
        compiled_length: strides of this many unwatched steps run as one compiled call; 0: none does.
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
        self.model = unhooked(model, share_tensors=True)
        self.optimizer = optimizer
        self.compiled_length = compiled_length

    def __call__(self, x: Tensor, y: Tensor, lrs: list[float], first: int) -> Tensor:
        """Take k steps on x (k, B, block_size), y (k, B) with k learning rates; returns the k losses.

        Raises:
            FloatingPointError: naming step (`first` is the number of the first one) and layer, where a loss or a
                parameter is not finite.
        """
        self.model.train()
        before = [tensor.detach().clone() for tensor in self._tensors()]
        losses = (self._compiled if len(lrs) == self.compiled_length else self._eager)(x, y, lrs)
        if not torch.isfinite(torch.stack([losses.sum(), *torch._foreach_norm(list(self.model.parameters()))])).all():
            with torch.no_grad():
                for tensor, old in zip(self._tensors(), before, strict=False):
                    tensor.copy_(old)
            self._replay(x, y, lrs, first, losses)
        return losses

    def _tensors(self) -> list[Tensor]:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return tensors

    def _replay(self, x: Tensor, y: Tensor, lrs: list[float], first: int, losses: Tensor) -> NoReturn:
        for i in range(len(lrs)):
            if found := first_not_finite(self.model, x[i], y[i]):
                raise FloatingPointError(f"step {first + i}: {found} is not finite.")
            self._eager(x[i : i + 1], y[i : i + 1], lrs[i : i + 1])
        if found := first_not_finite(self.model, x[-1], y[-1]):
            raise FloatingPointError(f"step {first + len(lrs)}: {found} is not finite.")
        step = first + int(torch.isfinite(losses).logical_not().nonzero().min())
        raise FloatingPointError(f"step {step}: the loss is not finite.")

    @torch.enable_grad()
    def _eager(self, x: Tensor, y: Tensor, lrs: list[float]) -> Tensor:
        parameters = list(self.model.parameters())
        losses = []
        for minibatch_x, minibatch_y, lr in zip(x, y, lrs, strict=True):
            self.optimizer.param_groups[0]["lr"] = lr
            loss = cross_entropy(self.model(minibatch_x), minibatch_y)
            self.optimizer.zero_grad()
            loss.backward()
            if self.rule.clip_value is not None:
                clip = nn.utils.clip_grad_norm_ if self.rule.clip_algorithm == "norm" else nn.utils.clip_grad_value_
                clip(parameters, self.rule.clip_value)
            self.optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    @torch.no_grad()
    def _compiled(self, x: Tensor, y: Tensor, lrs: list[float]) -> Tensor:
        parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        buffers = dict(self.model.named_buffers())
        state, taken = self._state()
        beta1, beta2 = self.rule.betas
        rates = torch.tensor(
            [(lr, 1 - beta1**t, math.sqrt(1 - beta2**t)) for t, lr in enumerate(lrs, start=taken + 1)], device=x.device
        )
        carry = (parameters, buffers, state)
        # one package for all runs of this shape: whatever may differ without another graph is an argument
        name = repr((self.model, self.rule, x.shape, x.device))
        step = functional_step(self.model, self.rule)
        new, losses = compiled_scan(name, step, carry, (x, y, rates))(carry, (x, y, rates))
        for old_tensor, new_tensor in zip(pytree.tree_leaves(carry), pytree.tree_leaves(new), strict=True):
            old_tensor.copy_(new_tensor)
        for each in self.optimizer.state.values():
            if "step" in each:
                each["step"] += len(lrs)
        assert isinstance(losses, Tensor)
        return losses

    def _state(self) -> tuple[State, int]:
        """The optimizer's live state tensors by slot and parameter, made where there are none, and its step count."""
        taken = 0
        for parameter in self.model.parameters():
            state = self.optimizer.state[parameter]
            if self.rule.kind is not SGD:
                taken = int(state.setdefault("step", torch.tensor(0.0)).item())
            for slot in self.rule.slots:
                if state.get(slot) is None:
                    state[slot] = torch.zeros_like(parameter)
        named = list(self.model.named_parameters())
        return {slot: {name: self.optimizer.state[p][slot] for name, p in named} for slot in self.rule.slots}, taken
