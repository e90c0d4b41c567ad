"""Data of the reporting half, drawn from fixed rules: (count, seed) -> inputs and targets."""

import math

import torch
from torch import Tensor

Data = tuple[Tensor, Tensor]


def friedman(count: int, seed: int) -> Data:
    """(N, 8) and (N, 1): Friedman's first function of five of the features, standardized."""
    draw = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 8, generator=draw)
    y = 10 * (math.pi * u[:, 0] * u[:, 1]).sin() + 20 * (u[:, 2] - 0.5) ** 2 + 10 * u[:, 3] + 5 * u[:, 4]
    y = y + torch.randn(count, generator=draw)
    return (u - 0.5) * math.sqrt(12), ((y - 14.4) / 5)[:, None]


def rings(count: int, seed: int) -> Data:
    """(N, 6) and (N,): whether a point lies inside of an ellipsoid, with some noise."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=draw)
    radius = (x[:, 0] ** 2 + 2 * x[:, 1] ** 2 + 0.5 * x[:, 2] * x[:, 3]).add(0.3 * torch.randn(count, generator=draw))
    return x, (radius < 2).float()


def bars(count: int, seed: int) -> Data:
    """(N, 3, 10, 10) and (N,): which of 6 directions a coloured wave has, whatever its phase."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(6, (count,), generator=draw)
    angle, phase = y * math.pi / 6, 2 * math.pi * torch.rand(count, generator=draw)
    rows, columns = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    along = angle.cos()[:, None, None] * rows + angle.sin()[:, None, None] * columns
    wave = (1.3 * along + phase[:, None, None]).sin()[:, None]
    colour = 0.5 + torch.rand(count, 3, 1, 1, generator=draw)
    return colour * wave + 0.6 * torch.randn(count, 3, 10, 10, generator=draw), y


def tones(count: int, seed: int) -> Data:
    """(N, 2, 24) and (N,): which of 4 frequencies a pair of noisy channels has."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (count,), generator=draw)
    phase = 2 * math.pi * torch.rand(count, 2, 1, generator=draw)
    wave = ((0.5 + 0.45 * y)[:, None, None] * torch.arange(24.0) + phase).sin()
    return 1.2 * wave + 0.5 * torch.randn(count, 2, 24, generator=draw), y


def sums(count: int, seed: int) -> Data:
    """(N, 9, 2) and (N, 1): the sum of the values that a second channel marks, standardized."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 9, generator=draw)
    marks = (torch.rand(count, 9, generator=draw) < 0.4).float()
    return torch.stack([values, marks], 2), (values * marks).sum(1, keepdim=True) / 1.9


def chains(count: int, seed: int) -> Data:
    """(N, 10) and (N, 10) integers: a Markov chain of second order over 9 letters, and its next letters."""
    world, draw = torch.Generator().manual_seed(5), torch.Generator().manual_seed(seed)
    odds = (2.5 * torch.randn(9, 9, 9, generator=world)).softmax(-1)
    letters = [torch.randint(9, (count,), generator=draw) for _ in range(2)]
    while len(letters) < 11:
        letters.append(torch.multinomial(odds[letters[-2], letters[-1]], 1, generator=draw)[:, 0])
    text = torch.stack(letters, 1)
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def surface(count: int, seed: int) -> Data:
    """(N, 20) twice: points on a curved surface of three dimensions."""
    world, draw = torch.Generator().manual_seed(6), torch.Generator().manual_seed(seed)
    inner = torch.randn(count, 3, generator=draw) @ torch.randn(3, 20, generator=world)
    x = (inner.sin() + 0.3 * inner + 0.1 * torch.randn(count, 20, generator=draw)) / 0.9
    return x, x


def circle(count: int, seed: int) -> Data:
    """(N, 2) and (N,): eight Gaussians on a circle, and which one."""
    draw = torch.Generator().manual_seed(seed)
    which = torch.randint(8, (count,), generator=draw)
    angle = which * math.pi / 4
    return torch.stack([angle.cos(), angle.sin()], 1) * 1.4 + 0.1 * torch.randn(count, 2, generator=draw), which


def two_answers(count: int, seed: int) -> Data:
    """(N, 7) and (N, 2): a class out of three and a number, both of the same inputs."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 7, generator=draw)
    number = (x[:, 0] * x[:, 1] + (1.5 * x[:, 2]).cos() + 0.1 * torch.randn(count, generator=draw)) / 1.2
    score = x[:, 3] + x[:, 4] * x[:, 5]
    return x, torch.stack([(score > -0.5).float() + (score > 0.7).float(), number], 1)
