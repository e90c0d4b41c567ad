"""The network of nn modules, and the fastest simple loop that a good user would write for it."""

from itertools import pairwise

import torch
from torch import nn
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
