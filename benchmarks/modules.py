"""Networks of nn modules: the lecture's, with the fastest simple loop for it, and those of other people's projects."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.networks import BLOCK_SIZE, N_EMBD, VOCAB_SIZE, Network
from benchmarks.splits import Forward, Splits, Tick


def mlp(network: Network) -> nn.Sequential:
    """The lecture's initialization: gain 5/3, but 1 for the deep network, whose logits have BatchNorm."""
    deep = network.batchnorm == "pre_output"
    gain, momentum = (1.0, 0.1) if deep else (5 / 3, 0.001)
    modules: list[nn.Module] = [nn.Embedding(VOCAB_SIZE, N_EMBD), nn.Flatten()]
    fan_in = BLOCK_SIZE * N_EMBD
    for _ in range(network.n_layers):
        linear = nn.Linear(fan_in, network.n_hidden, bias=network.batchnorm in ("none", "post"))
        nn.init.normal_(linear.weight, std=gain / fan_in**0.5)
        modules.append(linear)
        batchnorm = [nn.BatchNorm1d(network.n_hidden, momentum=momentum)] if network.batchnorm != "none" else []
        modules += [nn.Tanh(), *batchnorm] if network.batchnorm == "post" else [*batchnorm, nn.Tanh()]
        fan_in = network.n_hidden
    output = nn.Linear(fan_in, VOCAB_SIZE, bias=not deep)
    modules.append(output)
    if deep:
        batchnorm = nn.BatchNorm1d(VOCAB_SIZE, momentum=momentum)
        nn.init.constant_(batchnorm.weight, 0.1)
        modules.append(batchnorm)
        nn.init.normal_(output.weight, std=fan_in**-0.5)
    else:
        nn.init.normal_(output.weight, std=0.01)
        nn.init.zeros_(output.bias)
    return nn.Sequential(*modules)


def bare_loop(network: Network, splits: Splits, steps: int, tick: Tick) -> Forward:
    """Train with indices drawn from one tensor and the fused SGD. Nothing is recorded; the loss is printed."""
    x_train, y_train = splits["train"]
    model = mlp(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    for step in range(steps):
        if step == steps // 2:
            optimizer.param_groups[0]["lr"] = 0.01
        indices = torch.randint(len(y_train), (network.batch_size,))
        loss = cross_entropy(model(x_train[indices]), y_train[indices])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 10_000 == 0:
            print(f"{step:7d}/{steps:7d}: {loss.item():.4f}")
        tick(step + 1)
    return model.eval()


def matrix_products(network: Network, steps: int, tick: Tick) -> None:
    """Run only the matrix products of a step, forward and backward, into existing tensors: the floor."""
    sizes = [BLOCK_SIZE * N_EMBD, *[network.n_hidden] * network.n_layers, VOCAB_SIZE]
    products = []
    for fan_in, fan_out in pairwise(sizes):
        x, gradient = torch.randn(network.batch_size, fan_in), torch.randn(network.batch_size, fan_out)
        weight = torch.randn(fan_in, fan_out)
        for left, right in ((x, weight), (gradient, weight.T), (x.T, gradient)):
            products.append((left, right, left @ right))
    for step in range(steps):
        for left, right, out in products:
            torch.mm(left, right, out=out)
        tick(step + 1)


def image_mlp() -> nn.Sequential:
    """Four hidden layers with BatchNorm, (N, 784) to ten classes."""
    sizes = [784, 256, 256, 256, 256]
    hidden = [[nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()] for a, b in pairwise(sizes)]
    return nn.Sequential(*[layer for block in hidden for layer in block], nn.Linear(256, 10))


def cnn() -> nn.Sequential:
    """Two convolutions, (N, 1, 12, 12) to ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class Transformer(nn.Module):
    """One block of two heads, (N, T) tokens of 50 kinds to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(50, 32), nn.Linear(32, 10)
        self.norm, self.attention = nn.LayerNorm(32), nn.MultiheadAttention(32, 2, batch_first=True)
        self.feed = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        normal = self.norm(x)
        x = x + self.attention(normal, normal, normal, need_weights=False)[0]
        logits: Tensor = self.out((x + self.feed(x)).mean(1))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, one ReLU for both, in place, as torchvision has it."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm2d(fan_out)
        self.conv2, self.bn2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False), nn.BatchNorm2d(fan_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or fan_in != fan_out:
            self.shortcut.append(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)).append(nn.BatchNorm2d(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        activated: Tensor = self.relu(out + self.shortcut(x))
        return activated


def resnet18() -> nn.Sequential:
    """ResNet-18 (He et al. 2015), (N, 3, H, W) to ten classes."""
    sizes = [64, 64, 128, 256, 512]
    blocks = [ResidualBlock(a if first else b, b, 2 if first and a != b else 1)
              for a, b in pairwise(sizes) for first in (True, False)]  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
