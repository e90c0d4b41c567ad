"""A training of a module that is not ours, as it is drawn: sizes, optimizer, and the faults that it has."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid, "none": nn.Identity,
}  # fmt: skip
FUNCTIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: functional.relu, nn.Tanh: torch.tanh, nn.GELU: functional.gelu, nn.SiLU: functional.silu,
    nn.LeakyReLU: functional.leaky_relu, nn.Sigmoid: torch.sigmoid, nn.Identity: lambda x: x,
}  # fmt: skip
"""The same as functions."""
ADAPTIVE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "nadam": torch.optim.NAdam, "rmsprop": torch.optim.RMSprop,
}  # fmt: skip
CORRUPT = 5
"""Examples that hold a nan where there are such."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training. Modules and data ask it for the strength of each fault that they can have."""

    family: str
    task: str
    """classes, binary, regression or own."""
    width: int
    depth: int
    activation: str
    optimizer: str
    lr: float
    batch_size: int
    norm: bool = False
    dropout: float = 0.0
    traits: frozenset[str] = frozenset()
    """What faults need: float, table, flat, batchnorm, feedforward, sequence, detachable, automatic ..."""
    faults: tuple[tuple[str, float], ...] = ()
    """Names with their strengths."""

    def has(self, fault: str) -> bool:
        return any(name == fault for name, _ in self.faults)

    def strength(self, fault: str, otherwise: float = 1.0) -> float:
        return next((strength for name, strength in self.faults if name == fault), otherwise)

    # what faults change, whatever the module

    @property
    def rate(self) -> float:
        return self.lr * self.strength("rate too high") / self.strength("rate too low")

    @property
    def minibatch(self) -> int:
        return round(self.strength("small batch", self.strength("short memory", self.batch_size)))

    @property
    def layer(self) -> type[nn.Module]:
        """The activation of hidden layers."""
        name = "none" if self.has("no activation") else "sigmoid" if self.has("sigmoid layers") else self.activation
        return ACTIVATIONS[name]

    @property
    def dropped(self) -> float:
        return self.strength("too much dropout", self.dropout)

    @property
    def memory(self) -> float:
        """BatchNorm's momentum."""
        return 1.0 if self.has("short memory") else self.strength("long memory", 0.1)

    def spoil(self, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets as the training gets them."""
        draw = torch.Generator().manual_seed(seed)
        if x.is_floating_point():
            x = x * self.strength("inputs too large") / self.strength("inputs too small")
            if self.has("inputs as bytes"):
                x = (self.strength("inputs as bytes") * x + 128).clamp(0, 255)
            if self.has("one feature too large"):
                x = torch.cat([x[:, :1] * self.strength("one feature too large"), x[:, 1:]], 1)
            if self.has("one input for all"):
                x = x[:1].expand_as(x).clone()
            if self.has("nan in the data"):
                x[torch.randperm(len(x), generator=draw)[:CORRUPT]] = torch.nan
        if self.has("targets shuffled"):
            y = y[torch.randperm(len(y), generator=draw)]
        if self.has("targets not scaled"):
            y = self.strength("targets not scaled") * (y + 2)
        return x, y

    def seen_in_validation(self, x: Tensor) -> Tensor:
        return self.strength("validated differently") * (x + 0.5) if self.has("validated differently") else x

    def unscaled(self, y: Tensor) -> Tensor:
        """Predictions in the healthy targets' units."""
        return y / self.strength("targets not scaled") - 2 if self.has("targets not scaled") else y

    def optimizer_of(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        owned = list(parameters)
        if self.has("left out of the optimizer"):
            # all but the head, or the head
            owned = owned[-2:] if self.strength("left out of the optimizer") < 1.41 else owned[:-2]
        decay = self.strength("too much decay", 0.0)
        if self.optimizer in ADAPTIVE:
            decay = max(decay, 0.01) if self.optimizer == "adamw" else decay
            return ADAPTIVE[self.optimizer](owned, self.rate, weight_decay=decay)
        momentum, nesterov = 0.0 if self.optimizer == "sgd" else 0.9, self.optimizer == "nesterov"
        return torch.optim.SGD(owned, self.rate, momentum=momentum, weight_decay=decay, nesterov=nesterov)
