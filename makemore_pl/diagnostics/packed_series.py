"""Packs numbers by tag and step into a few tensors for a checkpoint: 8 bytes a number, 8 a step."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

Numbers = dict[str, dict[int, float | None]]


def pack(series: Mapping[str, Mapping[int, float | None]]) -> list[dict[str, Any]]:
    """For each group of tags with the same steps: `tags`, `steps` (S,) and `values` (tags, S), where nan is None."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for tag in sorted(series):
        groups.setdefault(tuple(sorted(series[tag])), []).append(tag)
    packed = []
    for steps, tags in groups.items():
        values = [[math.nan if (value := series[tag][step]) is None else value for step in steps] for tag in tags]
        packed.append({"tags": tags, "steps": torch.tensor(steps), "values": torch.tensor(values, dtype=torch.float64)})
    return packed


def unpack(packed: Iterable[Mapping[str, Any]]) -> Numbers:
    return {
        tag: dict(zip(group["steps"].tolist(), values, strict=True))
        for group in packed
        for tag, values in zip(group["tags"], group["values"].tolist(), strict=True)
    }
