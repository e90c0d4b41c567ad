"""Numbers and settings as words, for tables and alternative texts."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from makemore_pl.figures.series import Floats


def show(value: Any) -> str:
    """A config value as one types it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {plain(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return show(value) if value is not None else ""


def listed(words: Iterable[str]) -> str:
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


LARGE = 1000
"""From which on decimals say nothing: four significant digits are left."""


def number(value: float | None, digits: int = 4, sign: str = "") -> str:
    """With so many decimals, a large number with four digits in all; a dash for what is missing or not finite.

    Args:
        sign: "+" to show it of positive numbers too.
    """
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:{sign}{f'.{digits}f' if abs(value) < LARGE else '.4g'}}".replace("-", "−")


def signed(value: float | None, digits: int = 4) -> str:
    return number(value, digits, "+")


def count(value: int | None, sign: str = "") -> str:
    """With separators of thousands."""
    return "–" if value is None else f"{value:{sign},}".replace("-", "−")


def significant(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def from_to(values: Floats | None) -> str:
    finite = values[np.isfinite(values)] if values is not None else np.empty(0)
    return f"{significant(finite[0])} → {significant(finite[-1])}" if finite.size else "–"
