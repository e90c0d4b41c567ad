"""The lecture's training loop in plain tensors: the oracle of test_parity.py.

No nn, no torch.optim, nothing of makemore_pl but the values of its config. Only the gradients come from autograd.
"""

import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from makemore_pl.config import Config, ModelConfig, OptimConfig


def build_dataset(words: list[str], index: dict[str, int], block_size: int) -> tuple[Tensor, Tensor]:
    xs, ys = [], []
    for word in words:
        context = [0] * block_size
        for character in word + ".":
            xs.append(context)
            ys.append(index[character])
            context = [*context[1:], index[character]]
    return torch.tensor(xs), torch.tensor(ys)


def build_splits(words: list[str], block_size: int) -> dict[str, tuple[Tensor, Tensor]]:
    index = {character: i + 1 for i, character in enumerate(sorted(set("".join(words))))} | {".": 0}
    shuffled = list(words)
    random.seed(42)
    random.shuffle(shuffled)
    n1, n2 = int(0.8 * len(words)), int(0.9 * len(words))
    parts = {"train": shuffled[:n1], "val": shuffled[n1:n2], "test": shuffled[n2:]}
    return {name: build_dataset(part, index, block_size) for name, part in parts.items()}


ACTIVATIONS = {
    "tanh": lambda z: z.tanh(),
    "relu": lambda z: z * (z > 0),
    "leaky_relu": lambda z: z * (z > 0) + 0.01 * z * (z <= 0),
    "gelu": lambda z: z * (1 + (z / math.sqrt(2)).erf()) / 2,
    "silu": lambda z: z / (1 + (-z).exp()),
    "sigmoid": lambda z: 1 / (1 + (-z).exp()),
    "identity": lambda z: z,
}
# 1 / sqrt(E[f(z)^2]) of each activation; the gain of tanh is the lecture's
OWN_GAINS = {
    "tanh": 5 / 3, "relu": 2**0.5, "leaky_relu": 2**0.5 / 1.0001**0.5, "gelu": 1.5335, "silu": 1.6765,
    "sigmoid": 1.8462, "identity": 1.0,
}  # fmt: skip


class Network:
    """Parameters as the lecture keeps them, matrices (fan_in, fan_out), under the names of makemore_pl's state_dict."""

    def __init__(self, vocab_size: int, block_size: int, config: ModelConfig, generator: torch.Generator) -> None:
        self.config, self.generator = config, generator
        self.pre = config.batchnorm in ("pre", "pre_output")
        self.post = config.batchnorm == "post"
        self.on_logits = config.batchnorm in ("output", "pre_output")
        self.parameters = {"embedding.weight": torch.randn((vocab_size, config.n_embd), generator=generator)}
        self.running: dict[str, Tensor] = {}
        fan_in = block_size * config.n_embd
        for i in range(config.n_layers):
            std = self.std(fan_in, config.n_hidden)
            self.draw(f"layers.{i}", fan_in, config.n_hidden, std, None if self.pre else config.hidden_bias)
            if self.pre or self.post:
                self.add_batchnorm(f"layers.{i}", config.n_hidden, 1.0)
            fan_in = config.n_hidden
        if self.on_logits:
            self.draw("output", fan_in, vocab_size, self.std(fan_in, vocab_size), None)
            self.add_batchnorm("output", vocab_size, config.output_scale)
        else:
            self.draw("output", fan_in, vocab_size, config.output_scale, config.output_bias)
        for parameter in self.parameters.values():
            parameter.requires_grad_()

    def std(self, fan_in: int, fan_out: int) -> float:
        c = self.config
        own = OWN_GAINS[c.activation]
        if c.init == "kaiming":
            return (own if c.gain is None else c.gain) / fan_in**0.5
        if c.init == "xavier":
            return (own if c.gain is None else c.gain) * (2 / (fan_in + fan_out)) ** 0.5
        return (1.0 if c.gain is None else c.gain) * {"small": 0.01, "normal": 1.0}[c.init]

    def draw(self, name: str, fan_in: int, fan_out: int, std: float, bias_std: float | None) -> None:
        self.parameters[f"{name}.linear.weight"] = torch.randn((fan_in, fan_out), generator=self.generator) * std
        if bias_std is not None:
            self.parameters[f"{name}.linear.bias"] = torch.randn(fan_out, generator=self.generator) * bias_std

    def add_batchnorm(self, name: str, n: int, weight: float) -> None:
        self.parameters[f"{name}.batchnorm.weight"] = torch.full((n,), weight)
        self.parameters[f"{name}.batchnorm.bias"] = torch.zeros(n)
        self.running[f"{name}.batchnorm.running_mean"] = torch.zeros(n)
        self.running[f"{name}.batchnorm.running_var"] = torch.ones(n)

    def batchnorm(self, name: str, z: Tensor, training: bool) -> Tensor:
        mean_name, var_name = f"{name}.batchnorm.running_mean", f"{name}.batchnorm.running_var"
        if training:
            mean = z.mean(0)
            var = ((z - mean) ** 2).mean(0)  # biased: divides by B
            with torch.no_grad():
                momentum, unbiased = self.config.bn_momentum, var * len(z) / (len(z) - 1)
                self.running[mean_name] = (1 - momentum) * self.running[mean_name] + momentum * mean
                self.running[var_name] = (1 - momentum) * self.running[var_name] + momentum * unbiased
        else:
            mean, var = self.running[mean_name], self.running[var_name]
        z = (z - mean) / (var + self.config.bn_eps) ** 0.5
        return self.parameters[f"{name}.batchnorm.weight"] * z + self.parameters[f"{name}.batchnorm.bias"]

    def linear(self, name: str, h: Tensor) -> Tensor:
        z = h @ self.parameters[f"{name}.linear.weight"]
        bias = self.parameters.get(f"{name}.linear.bias")
        return z if bias is None else z + bias

    def loss(self, x: Tensor, y: Tensor, training: bool) -> Tensor:
        h = self.parameters["embedding.weight"][x].reshape(len(x), -1)
        for i in range(self.config.n_layers):
            z = self.linear(f"layers.{i}", h)
            z = self.batchnorm(f"layers.{i}", z, training) if self.pre else z
            h = ACTIVATIONS[self.config.activation](z)
            h = self.batchnorm(f"layers.{i}", h, training) if self.post else h
        logits = self.linear("output", h)
        logits = self.batchnorm("output", logits, training) if self.on_logits else logits
        return (logits.logsumexp(1) - logits[torch.arange(len(y)), y]).mean()

    def state(self) -> dict[str, Tensor]:
        """The parameters as in model.state_dict(), where nn.Linear keeps the transpose."""
        turned = {name: p.detach().T if "linear.weight" in name else p.detach() for name, p in self.parameters.items()}
        return turned | self.running


def learning_rate(step: int, config: OptimConfig, max_steps: int) -> float:
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "step_decay" and step >= config.decay_at * max_steps:
        return config.lr * config.decay_factor
    if config.schedule == "cosine":
        lowest, last = config.lr * config.decay_factor, max_steps - 1
        angle = math.pi * (step - config.warmup_steps) / (last - config.warmup_steps)
        return lowest + (config.lr - lowest) * (1 + math.cos(angle)) / 2
    return config.lr


def clip(gradients: dict[str, Tensor], bound: float | None, algorithm: str) -> bool:
    """Clip the gradients in place; returns whether anything was clipped."""
    if bound is None:
        return False
    if algorithm == "value":
        clipped = any(bool((g.abs() > bound).any()) for g in gradients.values())
        for name, g in gradients.items():
            gradients[name] = torch.minimum(torch.maximum(g, torch.tensor(-bound)), torch.tensor(bound))
        return clipped
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    for name, g in gradients.items():
        gradients[name] = g * min(1.0, bound / (norm + 1e-6))
    return norm > bound


@dataclass
class Optimizer:
    config: OptimConfig
    memory: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def new_value(self, name: str, p: Tensor, g: Tensor, lr: float, t: int) -> Tensor:
        """The parameter after its t-th step, counted from 1."""
        c, memory = self.config, self.memory
        if c.name == "adamw":
            p = p - lr * c.weight_decay * p
        else:
            g = g + c.weight_decay * p
        if c.name == "sgd":
            if c.momentum:
                memory[name, "v"] = c.momentum * memory[name, "v"] + g if t > 1 else g
                g = g + c.momentum * memory[name, "v"] if c.nesterov else memory[name, "v"]
            return p - lr * g
        zero = torch.zeros_like(p)
        if c.name == "rmsprop":
            memory[name, "s"] = c.alpha * memory.get((name, "s"), zero) + (1 - c.alpha) * g * g
            g = g / (memory[name, "s"] ** 0.5 + c.eps)
            memory[name, "v"] = c.momentum * memory.get((name, "v"), zero) + g
            return p - lr * memory[name, "v"]
        assert c.name in ("adam", "adamw")
        memory[name, "m"] = c.beta1 * memory.get((name, "m"), zero) + (1 - c.beta1) * g
        memory[name, "s"] = c.beta2 * memory.get((name, "s"), zero) + (1 - c.beta2) * g * g
        m, s = memory[name, "m"] / (1 - c.beta1**t), memory[name, "s"] / (1 - c.beta2**t)
        return p - lr * m / (s**0.5 + c.eps)


@dataclass
class Trained:
    network: Network
    losses: list[float]
    rates: list[float]
    clipped: int
    """Steps at which the clipping changed a gradient."""
    examples: dict[str, tuple[Tensor, Tensor]]

    def split_loss(self, split: str) -> float:
        with torch.no_grad():
            return self.network.loss(*self.examples[split], training=False).item()


def train(words: list[str], config: Config, steps: int | None = None) -> Trained:
    """The first `steps` steps (all where None) of a run of trainer.max_steps."""
    generator = torch.Generator().manual_seed(config.seed)
    examples = build_splits(words, config.data.block_size)
    network = Network(1 + len(set("".join(words))), config.data.block_size, config.model, generator)
    optimizer = Optimizer(config.optim)
    result = Trained(network, [], [], 0, examples)
    x, y = examples["train"]
    bound: Any = config.trainer.gradient_clip_val
    for step in range(config.trainer.max_steps if steps is None else steps):
        ix = torch.randint(0, len(x), (config.data.batch_size,), generator=generator)
        loss = network.loss(x[ix], y[ix], training=True)
        parameters = network.parameters
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        result.clipped += clip(gradients, bound, config.trainer.gradient_clip_algorithm)
        lr = learning_rate(step, config.optim, config.trainer.max_steps)
        for name, p in parameters.items():
            new = optimizer.new_value(name, p.detach(), gradients[name], lr, step + 1)
            parameters[name] = new.requires_grad_()
        result.losses.append(loss.item())
        result.rates.append(lr)
    return result
