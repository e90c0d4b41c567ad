"""Words to contexts and targets as the lecture does it, and the loss of a whole split."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.networks import BLOCK_SIZE

Splits = dict[str, tuple[Tensor, Tensor]]
Tick = Callable[[int], None]
"""Called with the number of steps done, after each."""
Forward = Callable[[Tensor], Tensor]
"""Contexts (N, block_size) -> logits (N, vocab_size), in evaluation mode."""


def read_splits(path: Path) -> Splits:
    """Contexts and targets of the 80/10/10 splits, built in Python lists as in the lecture."""
    words = path.read_text(encoding="utf-8").splitlines()
    index = {character: i for i, character in enumerate([".", *sorted(set("".join(words)))])}
    random.seed(42)
    random.shuffle(words)
    n1, n2 = int(0.8 * len(words)), int(0.9 * len(words))
    splits = {}
    for name, part in (("train", words[:n1]), ("val", words[n1:n2]), ("test", words[n2:])):
        contexts, targets = [], []
        for word in part:
            context = [0] * BLOCK_SIZE
            for character in word + ".":
                contexts.append(context)
                targets.append(index[character])
                context = [*context[1:], index[character]]
        splits[name] = (torch.tensor(contexts), torch.tensor(targets))
    return splits


@torch.no_grad()
def split_loss(forward: Forward, x: Tensor, y: Tensor) -> float:
    """Mean cross-entropy in nats of a whole split, in one forward pass."""
    return cross_entropy(forward(x), y).item()
