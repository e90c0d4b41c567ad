"""Numbers and settings as text, for tables and alternative texts."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from makemore_pl.figures.series import Floats


def show(value: Any) -> str:
    """A config value as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def as_text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {as_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(as_text, value))
    return show(value) if value is not None else ""


def listed(words: Iterable[str]) -> str:
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


LARGE = 1000
"""Numbers of this size or larger are shown with four significant digits instead of a number of decimals."""


def number(value: float | None, digits: int = 4, sign: str = "") -> str:
    """The number with this many decimals (a large one with four digits in all); a dash if it is missing or not finite.

    Args:
        sign: "+" to show it of positive numbers too.
    """
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:{sign}{f'.{digits}f' if abs(value) < LARGE else '.4g'}}".replace("-", "−")


def signed(value: float | None, digits: int = 4) -> str:
    return number(value, digits, "+")


def count(value: int | None, sign: str = "") -> str:
    """The number with separators of thousands."""
    return "–" if value is None else f"{value:{sign},}".replace("-", "−")


def significant(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def from_to(values: Floats | None) -> str:
    finite = values[np.isfinite(values)] if values is not None else np.empty(0)
    return f"{significant(finite[0])} → {significant(finite[-1])}" if finite.size else "–"
