"""Data of the tuning half, drawn from fixed rules: (count, seed) -> inputs and targets."""

import torch
from torch import Tensor

Data = tuple[Tensor, Tensor]


def waves(count: int, seed: int) -> Data:
    """(N, 6) and (N, 1): a sine and a product."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=draw)
    y = (2 * x[:, :1]).sin() + x[:, 1:2] * x[:, 2:3] + 0.1 * torch.randn(count, 1, generator=draw)
    return x, y / 1.2


def clouds(count: int, seed: int) -> Data:
    """(N, 10) and (N,): 5 classes of two Gaussians each."""
    draw = torch.Generator().manual_seed(seed)
    centres = 1.2 * torch.randn(10, 10, generator=torch.Generator().manual_seed(1))
    which = torch.randint(10, (count,), generator=draw)
    x = centres[which] + torch.randn(count, 10, generator=draw)
    return x / 1.5, which % 5


def pictures(count: int, seed: int) -> Data:
    """(N, 1, 8, 8) and (N,): 4 patterns, moved and noisy."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.randint(4, (count,), generator=draw)
    moves = torch.randint(3, (count,), generator=draw)
    moved = torch.stack([patterns.roll(int(move), -1) for move in range(3)])
    return (moved[moves, y] + 1.2 * torch.randn(count, 1, 8, 8, generator=draw)) / 1.5, y


def sequences(count: int, seed: int) -> Data:
    """(N, 7, 5) and (N,): in how many of two channels the sum over time is positive."""
    x = torch.randn(count, 7, 5, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, :, 0].sum(1) > 0).long() + (x[:, :, 1].sum(1) > 0).long()


def tokens(count: int, seed: int) -> Data:
    """(N, 8) integers and (N,): how many of them are small, up to 3."""
    x = torch.randint(12, (count, 8), generator=torch.Generator().manual_seed(seed))
    return x, (x < 4).sum(1).clamp(max=3)
