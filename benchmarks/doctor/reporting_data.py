"""Data of the reporting half, drawn from fixed rules: (count, seed) -> inputs and targets."""

import math

import torch
from torch import Tensor

Data = tuple[Tensor, Tensor]


def _grid(size: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    return rows, columns


def shapes(count: int, seed: int) -> Data:
    """(N, 3, 12, 12) and (N,): which of 5 shapes lies somewhere in a noisy picture."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(5, (count,), generator=draw)
    centre = 4 + 3 * torch.rand(count, 2, 1, 1, generator=draw)
    down, right = ((each - centre[:, place]).abs() for place, each in enumerate(_grid(12)))
    radius, largest, smallest = torch.hypot(down, right), torch.maximum(down, right), torch.minimum(down, right)
    filled = [radius < 3.2, largest < 3, smallest < 0.8, (radius - 3).abs() < 0.7, (down - right).abs() < 0.8]
    inside = torch.stack([each & (largest < 4.5) for each in filled], 1)[torch.arange(count), y][:, None]
    colour = 1 + torch.rand(count, 3, 1, 1, generator=draw)
    return (colour * inside + 0.5 * torch.randn(count, 3, 12, 12, generator=draw) - 0.3) / 0.8, y


def outlines(count: int, seed: int) -> Data:
    """(N, 1, 12, 12) twice: noisy outlines of discs, and where their insides are."""
    draw = torch.Generator().manual_seed(seed)
    centre, radius = 4 + 3 * torch.rand(count, 2, 1, 1, generator=draw), 2 + 2 * torch.rand(count, 1, 1, generator=draw)
    rows, columns = _grid(12)
    outside = torch.hypot(rows - centre[:, 0], columns - centre[:, 1]) - radius
    x = 2.5 * (-2 * outside**2).exp() + 0.5 * torch.randn(count, 12, 12, generator=draw) - 0.4
    return x[:, None] / 0.9, (outside < 0).float()[:, None]


def stamps(count: int, seed: int) -> Data:
    """(N, 1, 12, 12) and (N,): in which of 4 parts of the picture a bright stamp lies, wherever a dark one lies."""
    draw = torch.Generator().manual_seed(seed)
    bright, dark = torch.rand(count, 9, generator=draw).topk(2).indices.unbind(1)  # cells of a grid of 3 by 3
    x = 0.9 * torch.randn(count, 3, 4, 3, 4, generator=draw)
    every = torch.arange(count)
    x[every, bright // 3, :, bright % 3] += 1
    x[every, dark // 3, :, dark % 3] -= 1
    return x.reshape(count, 1, 12, 12), (bright // 3 > 0).long() + 2 * (bright % 3 > 0).long()


def dialects(count: int, seed: int) -> Data:
    """(N, 10) and (N, 10) integers: a chain over 12 letters whose first letter says in which of 3 ways it goes on."""
    world, draw = torch.Generator().manual_seed(15), torch.Generator().manual_seed(seed)
    odds = (2.5 * torch.randn(3, 12, 12, generator=world)).softmax(-1)
    letters = [torch.randint(12, (count,), generator=draw)]
    dialect = letters[0] % 3
    while len(letters) < 11:
        letters.append(torch.multinomial(odds[dialect, letters[-1]], 1, generator=draw)[:, 0])
    text = torch.stack(letters, 1)
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def reviews(count: int, seed: int) -> Data:
    """(N, 12) integers and (N,): words for and against and their negations, then zeros; which of 3 opinions it is."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 16, (count, 12), generator=draw)
    lengths = torch.randint(4, 13, (count, 1), generator=draw)
    words = words * (torch.arange(12) < lengths)
    values = ((words > 0) & (words < 6)).float() - ((words > 5) & (words < 11)).float()
    turned = torch.cat([torch.zeros(count, 1, dtype=torch.bool), words[:, :-1] > 13], 1)
    opinion = torch.where(turned, -values, values).sum(1)
    return words, 1 + opinion.sign().long()


def pendulums(count: int, seed: int) -> Data:
    """(N, 16, 2) and (N, 1): the next value of a wave, turned where the second channel is mostly negative."""
    draw = torch.Generator().manual_seed(seed)
    rate, phase = 0.4 + 0.8 * torch.rand(count, 1, generator=draw), 2 * math.pi * torch.rand(count, 1, generator=draw)
    wave = math.sqrt(2) * (rate * torch.arange(17) + phase).sin()
    side = torch.randn(count, 1, generator=draw).sign() + torch.randn(count, 16, generator=draw)
    x = torch.stack([wave[:, :-1] + 0.1 * torch.randn(count, 16, generator=draw), side / math.sqrt(2)], 2)
    return x, wave[:, -1:] * side.mean(1, keepdim=True).sign()


def sensors(count: int, seed: int) -> Data:
    """(N, 6) in kelvin, pascal and so on, and (N, 3): three standardized numbers that follow from them."""
    draw = torch.Generator().manual_seed(seed)
    z, noise = torch.randn(count, 6, generator=draw), 0.15 * torch.randn(count, 3, generator=draw)
    units = torch.tensor([[293, 101_325, 50, 4, 0.002, 800], [12, 1500, 18, 2, 0.0005, 300]])
    y = torch.stack([(2 * z[:, 0]).sin() + z[:, 1], z[:, 2] * z[:, 3], 1.5 * z[:, 4].abs() - 1.2 + z[:, 5]], 1)
    return units[0] + units[1] * z, y / torch.tensor([1.2, 1.0, 1.35]) + noise


def customers(count: int, seed: int) -> Data:
    """(N, 9) and (N,): one of 4 kinds, by two rules that are not linear, with one in 20 wrong."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 9, generator=draw)
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] + x[:, 3] ** 2 > 1).long()
    wrong = torch.rand(count, generator=draw) < 0.05
    return x, torch.where(wrong, torch.randint(4, (count,), generator=draw), y)


def ratings(count: int, seed: int) -> Data:
    """(N, 2) integers and (N, 1): 60 users and 40 films, and a standardized rating."""
    world, draw = torch.Generator().manual_seed(16), torch.Generator().manual_seed(seed)
    users, films = torch.randn(60, 4, generator=world), torch.randn(40, 4, generator=world)
    pairs = torch.stack([torch.randint(60, (count,), generator=draw), torch.randint(40, (count,), generator=draw)], 1)
    user, film = users[pairs[:, 0]], films[pairs[:, 1]]
    y = user[:, 0] + film[:, 0] + 0.5 * (user[:, 1:] * film[:, 1:]).sum(1) + 0.4 * torch.randn(count, generator=draw)
    return pairs, y[:, None] / 1.7


def states(count: int, seed: int) -> Data:
    """(N, 6) and (N,): which of 4 actions is paid for."""
    world, draw = torch.Generator().manual_seed(17), torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=draw)
    return x, (x @ torch.randn(6, 4, generator=world) + (x**2) @ torch.randn(6, 4, generator=world)).argmax(1)


def views(count: int, seed: int) -> Data:
    """(N, 2, 16) and (N,): two noisy views of the same hidden point, and zeros."""
    world, draw = torch.Generator().manual_seed(18), torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 4, 16, generator=world)
    seen = (torch.randn(count, 4, generator=draw) @ maps).sin().transpose(0, 1)
    return (seen + 0.2 * torch.randn(count, 2, 16, generator=draw)) / 0.75, torch.zeros(count)


def molecules(count: int, seed: int) -> Data:
    """(N, 8, 12) and (N,): 4 features of 8 atoms and their bonds; how much bonded atoms are alike, in 3 classes."""
    draw = torch.Generator().manual_seed(seed)
    bonds = (torch.rand(count, 8, 8, generator=draw) < 0.3).float().triu(1)
    bonds = bonds + bonds.transpose(1, 2)
    atoms = torch.randn(count, 8, 4, generator=draw)
    side = torch.randn(count, 1, generator=draw)
    atoms[:, :, 0] += 0.8 * side
    alike = (bonds * (atoms[:, :, :1] @ atoms[:, :, :1].transpose(1, 2))).sum((1, 2)) / bonds.sum((1, 2)).clamp(1)
    return torch.cat([atoms, bonds], 2), (alike > 0).long() + (alike > 0.9).long()


def bumps(count: int, seed: int) -> Data:
    """(N, 36) twice: bumps somewhere in pictures of 6 by 6."""
    draw = torch.Generator().manual_seed(seed)
    centre, width = 5 * torch.rand(count, 2, 1, 1, generator=draw), 1 + torch.rand(count, 1, 1, generator=draw)
    rows, columns = _grid(6)
    height = (-((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2) / (2 * width**2)).exp()
    x = (height + 0.05 * torch.randn(count, 6, 6, generator=draw) - 0.26) / 0.3
    return x.flatten(1), x.flatten(1)


def steps(count: int, seed: int) -> Data:
    """(N, 1, 32) twice: a noisy signal that jumps now and then, and the signal."""
    draw = torch.Generator().manual_seed(seed)
    jumps = torch.randn(count, 1, 32, generator=draw) * (torch.rand(count, 1, 32, generator=draw) < 0.15)
    level = torch.randn(count, 1, 1, generator=draw) + jumps.cumsum(2)
    clean = level / 1.8
    return clean + 0.6 * torch.randn(count, 1, 32, generator=draw), clean


def moons(count: int, seed: int) -> Data:
    """(N, 2) and (N,): two half circles that reach into each other, and which one."""
    draw = torch.Generator().manual_seed(seed)
    which, angle = torch.randint(2, (count,), generator=draw), math.pi * torch.rand(count, generator=draw)
    sign = 1 - 2 * which
    x = torch.stack([sign * angle.cos() + which - 0.5, sign * (angle.sin() - 0.25)], 1)
    return x / torch.tensor([0.9, 0.5]) + 0.1 * torch.randn(count, 2, generator=draw), which
