"""The lecture's training loops: plain tensors and hand-written layers."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.networks import BLOCK_SIZE, N_EMBD, VOCAB_SIZE, Network
from benchmarks.splits import Forward, Splits, Tick

FAN_IN = BLOCK_SIZE * N_EMBD
SEED = 2147483647


def update_data_ratios(parameters: list[Tensor], lr: float) -> list[float]:
    with torch.no_grad():
        return [((lr * p.grad).std() / p.data.std()).log10().item() for p in parameters]  # type: ignore[operator, union-attr]


def train_shallow(network: Network, splits: Splits, steps: int, tick: Tick, bookkeeping: bool = False) -> Forward:
    """Train one hidden layer on plain tensors, with hand-written BatchNorm or without.

    Args:
        bookkeeping: record the gradients of all layers' outputs and the update:data ratios at every step, as the
            lecture does for its deep network only.
    """
    n_hidden, batchnorm = network.n_hidden, network.batchnorm == "pre"
    x_train, y_train = splits["train"]
    device = x_train.device
    g = torch.Generator(device).manual_seed(SEED)
    with device:
        c = torch.randn((VOCAB_SIZE, N_EMBD), generator=g)
        w1 = torch.randn((FAN_IN, n_hidden), generator=g) * (5 / 3) / FAN_IN**0.5
        b1 = torch.randn(n_hidden, generator=g) * 0.01
        w2 = torch.randn((n_hidden, VOCAB_SIZE), generator=g) * 0.01
        b2 = torch.randn(VOCAB_SIZE, generator=g) * 0
        bn_gain = torch.ones((1, n_hidden))
        bn_bias = torch.zeros((1, n_hidden))
        bn_mean_running = torch.zeros((1, n_hidden))
        bn_std_running = torch.ones((1, n_hidden))
    parameters = [c, w1, w2, b2, bn_gain, bn_bias] if batchnorm else [c, w1, b1, w2, b2]
    for p in parameters:
        p.requires_grad = True
    losses, ratios = [], []

    for i in range(steps):
        ix = torch.randint(0, x_train.shape[0], (network.batch_size,), generator=g, device=device)
        xb, yb = x_train[ix], y_train[ix]

        emb = c[xb]
        embcat = emb.view(emb.shape[0], -1)
        if batchnorm:
            linear = embcat @ w1
            mean = linear.mean(0, keepdim=True)
            std = linear.std(0, keepdim=True)
            preactivation = bn_gain * (linear - mean) / std + bn_bias
            with torch.no_grad():
                bn_mean_running = 0.999 * bn_mean_running + 0.001 * mean
                bn_std_running = 0.999 * bn_std_running + 0.001 * std
        else:
            preactivation = linear = embcat @ w1 + b1
        h = torch.tanh(preactivation)
        logits = h @ w2 + b2
        loss = cross_entropy(logits, yb)

        if bookkeeping:
            for out in (linear, preactivation, h, logits):
                out.retain_grad()
        for p in parameters:
            p.grad = None
        loss.backward()

        lr = 0.1 if i < steps / 2 else 0.01
        for p in parameters:
            p.data += -lr * p.grad

        if i % 10_000 == 0:
            print(f"{i:7d}/{steps:7d}: {loss.item():.4f}")
        losses.append(loss.log10().item())
        if bookkeeping:
            ratios.append(update_data_ratios(parameters, lr))
        tick(i + 1)

    def forward(x: Tensor) -> Tensor:
        emb = c[x]
        preactivation = emb.view(emb.shape[0], -1) @ w1
        if batchnorm:
            preactivation = bn_gain * (preactivation - bn_mean_running) / bn_std_running + bn_bias
        else:
            preactivation = preactivation + b1
        return torch.tanh(preactivation) @ w2 + b2

    return forward


class Linear:
    """Without bias, for BatchNorm follows."""

    def __init__(self, fan_in: int, fan_out: int, g: torch.Generator) -> None:
        self.weight: Tensor = torch.randn((fan_in, fan_out), generator=g) / fan_in**0.5

    def __call__(self, x: Tensor) -> Tensor:
        self.out = x @ self.weight
        return self.out

    def parameters(self) -> list[Tensor]:
        return [self.weight]


class BatchNorm1d:
    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        self.eps = eps
        self.momentum = momentum
        self.training = True
        self.gamma = torch.ones(dim)
        self.beta = torch.zeros(dim)
        self.running_mean = torch.zeros(dim)
        self.running_var = torch.ones(dim)

    def __call__(self, x: Tensor) -> Tensor:
        if self.training:
            mean = x.mean(0, keepdim=True)
            var = x.var(0, keepdim=True)
        else:
            mean = self.running_mean
            var = self.running_var
        normalized = (x - mean) / torch.sqrt(var + self.eps)
        self.out = self.gamma * normalized + self.beta
        if self.training:
            with torch.no_grad():
                self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean
                self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var
        return self.out

    def parameters(self) -> list[Tensor]:
        return [self.gamma, self.beta]


class Tanh:
    def __call__(self, x: Tensor) -> Tensor:
        self.out = torch.tanh(x)
        return self.out

    def parameters(self) -> list[Tensor]:
        return []


def train_deep(network: Network, splits: Splits, steps: int, tick: Tick, bookkeeping: bool = False) -> Forward:
    """Layers as classes, BatchNorm after every one of them."""
    x_train, y_train = splits["train"]
    g = torch.Generator().manual_seed(SEED)
    c = torch.randn((VOCAB_SIZE, N_EMBD), generator=g)
    layers: list[Linear | BatchNorm1d | Tanh] = []
    fan_in = FAN_IN
    for _ in range(network.n_layers):
        layers += [Linear(fan_in, network.n_hidden, g), BatchNorm1d(network.n_hidden), Tanh()]
        fan_in = network.n_hidden
    last = BatchNorm1d(VOCAB_SIZE)
    last.gamma *= 0.1
    layers += [Linear(fan_in, VOCAB_SIZE, g), last]
    parameters = [c] + [p for layer in layers for p in layer.parameters()]
    for p in parameters:
        p.requires_grad = True
    losses, ratios = [], []

    for i in range(steps):
        ix = torch.randint(0, x_train.shape[0], (network.batch_size,), generator=g)
        xb, yb = x_train[ix], y_train[ix]

        emb = c[xb]
        x = emb.view(emb.shape[0], -1)
        for layer in layers:
            x = layer(x)
        loss = cross_entropy(x, yb)

        if bookkeeping:
            for layer in layers:
                layer.out.retain_grad()
        for p in parameters:
            p.grad = None
        loss.backward()

        lr = 0.1 if i < steps / 2 else 0.01
        for p in parameters:
            p.data += -lr * p.grad  # type: ignore[operator]

        if i % 10_000 == 0:
            print(f"{i:7d}/{steps:7d}: {loss.item():.4f}")
        losses.append(loss.log10().item())
        if bookkeeping:
            ratios.append(update_data_ratios(parameters, lr))
        tick(i + 1)

    for layer in layers:
        if isinstance(layer, BatchNorm1d):
            layer.training = False

    def forward(x: Tensor) -> Tensor:
        emb = c[x]
        x = emb.view(emb.shape[0], -1)
        for layer in layers:
            x = layer(x)
        return x

    return forward
