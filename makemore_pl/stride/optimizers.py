"""The optimizers: each as an object of torch.optim, and as a pure function that takes the same steps."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from makemore_pl.config import OptimConfig
from makemore_pl.config.choices import OPTIMIZER_SETTINGS

Tensors = dict[str, Tensor]
State = dict[str, Tensors]
"""Slot (momentum_buffer, exp_avg, exp_avg_sq or square_avg) -> parameter name -> tensor."""


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> Optimizer:
    """The torch.optim optimizer of a config, with the settings that OPTIMIZER_SETTINGS lists for it."""
    settings: dict[str, Any] = {name: getattr(config, name) for name in OPTIMIZER_SETTINGS[config.name]}
    if "beta1" in settings:
        settings["betas"] = settings.pop("beta1"), settings.pop("beta2")
    return METHODS[config.name].optimizer(parameters, lr=config.lr, **settings)  # type: ignore[call-arg]


class Rule(NamedTuple):
    """How an optimizer steps. These values are constants of a compiled call; learning rates are its arguments."""

    name: str
    """A name of METHODS, as in optim.name."""
    weight_decay: float
    momentum: float
    nesterov: bool
    betas: tuple[float, float]
    alpha: float
    eps: float
    clip_value: float | None
    clip_algorithm: str

    @classmethod
    def of(cls, optimizer: Optimizer, clip_value: float | None, clip_algorithm: str) -> "Rule":
        """Read from a torch.optim optimizer.

        Raises:
            ValueError: `update` can't take the steps of this optimizer.
        """
        names = [name for name, method in METHODS.items() if method.optimizer is type(optimizer)]
        group = optimizer.param_groups[0]
        unknown = [key for key in ("amsgrad", "maximize", "dampening", "centered") if group.get(key)]
        if not names or len(optimizer.param_groups) > 1 or unknown:
            known = ", ".join(method.optimizer.__name__ for method in METHODS.values())
            raise ValueError(
                f"Unwatched steps know {known} with one parameter group and without amsgrad, maximize, dampening and "
                f"centered, not {type(optimizer).__name__} as set up here: use trainer.watch_every=1."
            )
        return cls(
            names[0],
            group["weight_decay"],
            group.get("momentum", 0.0),
            group.get("nesterov", False),
            tuple(group.get("betas", (0.0, 0.0))),
            group.get("alpha", 0.0),
            group.get("eps", 0.0),
            clip_value,
            clip_algorithm,
        )

    @property
    def method(self) -> "Method":
        return METHODS[self.name]

    @property
    def is_gradient_descent(self) -> bool:
        """Whether a step is the gradient times the learning rate, and nothing else."""
        return self.name == "sgd" and not (self.momentum or self.weight_decay or self.clip_value)

    @property
    def slots(self) -> tuple[str, ...]:
        """The tensors that this optimizer keeps for each parameter."""
        return (*self.method.slots, *(("momentum_buffer",) if self.momentum else ()))


def clip_gradients(gradients: Tensors, rule: Rule) -> Tensors:
    """The gradients clipped as by torch.nn.utils.clip_grad_norm_ or clip_grad_value_, as new tensors."""
    if rule.clip_value is None:
        return gradients
    return CLIPPING[rule.clip_algorithm].pure(gradients, rule.clip_value)


def _clip_norm(gradients: Tensors, bound: float) -> Tensors:
    norm = torch.stack([gradient.pow(2).sum() for gradient in gradients.values()]).sum().sqrt()
    scale = (bound / (norm + 1e-6)).clamp(max=1.0)
    return {name: gradient * scale for name, gradient in gradients.items()}


def _clip_value(gradients: Tensors, bound: float) -> Tensors:
    return {name: gradient.clamp(-bound, bound) for name, gradient in gradients.items()}


class Clipping(NamedTuple):
    """One choice of trainer.gradient_clip_algorithm: torch's in-place function, and one that returns new tensors."""

    in_place: Callable[[Iterable[Tensor], float], Any]
    pure: Callable[[Tensors, float], Tensors]


CLIPPING = {
    "norm": Clipping(nn.utils.clip_grad_norm_, _clip_norm),
    "value": Clipping(nn.utils.clip_grad_value_, _clip_value),
}


def update(rule: Rule, parameters: Tensors, gradients: Tensors, state: State, rates: Tensor) -> tuple[Tensors, State]:
    """One step of the torch.optim optimizer. It returns new tensors.

    Args:
        rates: (3,) the learning rate, 1 - beta1^t and sqrt(1 - beta2^t); the last two are for Adam.
    """
    return rule.method.step(rule, parameters, gradients, state, rates)


def _with_l2(rule: Rule, parameters: Tensors, gradients: Tensors) -> Tensors:
    if not rule.weight_decay:
        return gradients
    return {name: gradient + rule.weight_decay * parameters[name] for name, gradient in gradients.items()}


def _sgd(rule: Rule, parameters: Tensors, gradients: Tensors, state: State, rates: Tensor) -> tuple[Tensors, State]:
    gradients = _with_l2(rule, parameters, gradients)
    if rule.momentum:
        buffers = {name: rule.momentum * old + gradients[name] for name, old in state["momentum_buffer"].items()}
        state = {"momentum_buffer": buffers}
        if rule.nesterov:
            gradients = {name: gradients[name] + rule.momentum * buffer for name, buffer in buffers.items()}
        else:
            gradients = buffers
    return {name: p - rates[0] * gradients[name] for name, p in parameters.items()}, state


def _adam(rule: Rule, parameters: Tensors, gradients: Tensors, state: State, rates: Tensor) -> tuple[Tensors, State]:
    return _adaptive_moments(rule, parameters, _with_l2(rule, parameters, gradients), state, rates)


def _adamw(rule: Rule, parameters: Tensors, gradients: Tensors, state: State, rates: Tensor) -> tuple[Tensors, State]:
    if rule.weight_decay:
        parameters = {name: p * (1 - rates[0] * rule.weight_decay) for name, p in parameters.items()}
    return _adaptive_moments(rule, parameters, gradients, state, rates)


def _adaptive_moments(
    rule: Rule, parameters: Tensors, gradients: Tensors, state: State, rates: Tensor
) -> tuple[Tensors, State]:
    beta1, beta2 = rule.betas
    first = {name: old.lerp(gradients[name], 1 - beta1) for name, old in state["exp_avg"].items()}
    second = {name: beta2 * old + (1 - beta2) * gradients[name] ** 2 for name, old in state["exp_avg_sq"].items()}
    step_size = rates[0] / rates[1]
    parameters = {
        name: p - step_size * first[name] / (second[name].sqrt() / rates[2] + rule.eps)
        for name, p in parameters.items()
    }
    return parameters, {"exp_avg": first, "exp_avg_sq": second}


def _rmsprop(rule: Rule, parameters: Tensors, gradients: Tensors, state: State, rates: Tensor) -> tuple[Tensors, State]:
    gradients = _with_l2(rule, parameters, gradients)
    second = {n: rule.alpha * old + (1 - rule.alpha) * gradients[n] ** 2 for n, old in state["square_avg"].items()}
    steps = {name: gradient / (second[name].sqrt() + rule.eps) for name, gradient in gradients.items()}
    new = {"square_avg": second}
    if rule.momentum:
        steps = {name: rule.momentum * old + steps[name] for name, old in state["momentum_buffer"].items()}
        new["momentum_buffer"] = steps
    return {name: p - rates[0] * steps[name] for name, p in parameters.items()}, new


class Method(NamedTuple):
    """One choice of optim.name."""

    optimizer: type[Optimizer]
    step: Callable[[Rule, Tensors, Tensors, State, Tensor], tuple[Tensors, State]]
    slots: tuple[str, ...]
    """The tensors that torch keeps for each parameter, without the momentum_buffer of a rule with momentum."""
    counts_steps: bool
    """Whether torch keeps the number of steps taken, as `step`."""


METHODS = {
    "sgd": Method(SGD, _sgd, (), counts_steps=False),
    "adam": Method(Adam, _adam, ("exp_avg", "exp_avg_sq"), counts_steps=True),
    "adamw": Method(AdamW, _adamw, ("exp_avg", "exp_avg_sq"), counts_steps=True),
    "rmsprop": Method(RMSprop, _rmsprop, ("square_avg",), counts_steps=True),
}
"""optim.name -> method. The names, and the settings of each, are also in OPTIMIZER_SETTINGS of config/choices.py."""
