"""Dropout whose masks are the same whether they are drawn in the forward pass or ahead of it."""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Sets a share p of its input to 0 in training and divides the rest by 1 - p.

    On the CPU it takes the same random numbers as nn.Dropout. On a GPU nn.Dropout draws inside of a kernel of its own,
    so its masks can't be drawn ahead. This module draws all its masks by the same calls to the device's generator.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.mask: Tensor | None
        self.register_buffer("mask", None, persistent=False)

    def draw(self, shape: torch.Size, device: torch.device) -> Tensor:
        """0 or 1 / (1 - p), float32, from torch's global generator of the device."""
        return torch.empty(shape, device=device).bernoulli_(1 - self.p).div_(1 - self.p)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x by the buffer `mask`, or by a new mask if the buffer is None."""
        if not self.training:
            return x
        mask = self.draw(x.shape, x.device) if self.mask is None else self.mask
        return x * mask.to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}"
