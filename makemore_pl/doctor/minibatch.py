"""Measures of a minibatch: its examples, how large its numbers are, and whether its examples differ."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from makemore_pl.doctor.facts import Scale


def scale_of(x: Tensor, per_feature: bool = True) -> Scale | None:
    """Size of the numbers of a minibatch (N, ...); None if it is empty, not of real floats, or not finite."""
    if x.numel() < 2 or not x.is_floating_point() or x.ndim == 0:
        return None
    x = x.detach().double()
    if not bool(torch.isfinite(x).all()):
        return None
    spread = 1.0
    if per_feature and x.ndim == 2 and x.size(0) > 7 and x.size(1) > 1:
        stds = x.std(0)
        stds = stds[stds > 0]
        if len(stds) > 1:
            spread = float(stds.max() / stds.median())
    varies = bool((x != x[:1]).any()) if x.size(0) > 1 else True
    return Scale(float(x.mean()), float(x.std()), float(x.abs().max()), float(x.min()), spread, varies)


def examples_vary(x: Tensor, size: int) -> bool | None:
    """Whether examples differ in a minibatch of this size; None where nobody can tell along which dimension they lie.

    With two dimensions of this size it is enough that numbers differ along one of them.
    """
    axes = [axis for axis in range(x.ndim) if x.size(axis) == size]
    if size < 2 or not axes:
        return None
    return any(bool((x != x.narrow(axis, 0, 1)).any()) for axis in axes)


def positions_of(x: Tensor) -> int:
    """Numbers (B, C, H, W), (B, C, L) or (B, T, C) hold for each example and unit; for three dimensions the larger of
    what both orders say.
    """
    return x.numel() // max(len(x) * (x.size(1) if x.ndim > 3 else min(x.shape[1:])), 1)


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [tensor for each in value for tensor in tensors_in(each)]
    return []


def examples_in(batch: Any) -> int | None:
    """The length of the first dimension of a batch's first tensor."""
    found = [each for each in tensors_in(batch) if each.ndim]
    return found[0].size(0) if found else None
