"""Tells which units of a layer have the weights of another one."""

from collections.abc import Mapping

import torch
from torch import nn


def copies_of_units(named: Mapping[str, nn.Parameter], zeros: bool = False) -> dict[str, float]:
    """Matrix -> share of its rows that equal another row which is not all zeros.

    Args:
        zeros: count those of a matrix that is zero throughout. At the start that may be meant, as in a residual branch.
    """
    found = {}
    for name, parameter in named.items():
        if (
            nn.parameter.is_lazy(parameter)
            or parameter.ndim < 2
            or parameter.size(0) < 2
            or parameter.numel() > 4_000_000
            or not parameter.requires_grad
        ):
            continue
        rows = parameter.detach().flatten(1).float()
        rows = rows if zeros and not rows.any() else rows[rows.any(1)]
        if len(rows) > 1 and rows.size(1) > 1:  # rows of one number are scales, which can well be equal
            # rows that differ in their first number are no copies; to sort whole rows takes far longer
            different = len(torch.unique(rows[:, 0]))
            different = len(torch.unique(rows, dim=0)) if different < len(rows) else different
            found[name] = 1 - different / len(rows)
            found[name] *= len(rows) / (len(rows) - 1)  # so that the share is 1 if all rows are equal
    return found
