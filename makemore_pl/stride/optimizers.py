"""How SGD, Adam and AdamW step, as pure functions of tensors that agree with torch.optim and its clipping."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

Tensors = dict[str, Tensor]
State = dict[str, Tensors]
"""Optimizer state by slot (momentum_buffer; exp_avg, exp_avg_sq), then by parameter."""
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
    def is_plain(self) -> bool:
        """Whether a step is the gradient times the learning rate, and nothing else."""
        return self.kind is SGD and not (self.momentum or self.weight_decay or self.clip_value)

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
