"""Arranges the settings of a sweep for a heat map: two of the varied keys are axes, the others make panels."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from makemore_pl.figures.series import Floats
from makemore_pl.report.sweep_directory import Mean, Row
from makemore_pl.report.wording import show

PANELS = 8
"""At most this many panels are shown; if there are more, one panel with their mean."""


def grids(
    settings: Sequence[Row], keys: Sequence[str], value: Callable[[Row], float]
) -> tuple[dict[str, Floats], list[str], list[str], str, str]:
    """Panels of (y, x) grids for a heat map, the labels of x and y, and the names of both axes.

    Numeric keys are preferred as axes. If there would be more than PANELS panels, their mean is the only one.
    """
    ordered = sorted(keys, key=lambda key: not all(is_number(row.setting[key]) for row in settings))
    x_key, y_key, *panel_keys = [*ordered, "", ""][: max(2, len(ordered))]
    xs, ys = (_levels(settings, key) for key in (x_key, y_key))
    panels: dict[str, list[Row]] = {}
    for row in settings:
        label = " ".join(f"{key}={show(row.setting[key])}" for key in panel_keys)
        panels.setdefault(label, []).append(row)
    if len(panels) > PANELS:
        panels = {f"mean over {', '.join(panel_keys)}": list(settings)}
    found = {}
    for label, members in panels.items():
        cells: dict[tuple[int, int], list[float]] = {}
        for row in members:
            place = ys.index(row.setting.get(y_key)), xs.index(row.setting.get(x_key))
            cells.setdefault(place, []).append(value(row))
        grid = np.full((len(ys), len(xs)), np.nan)
        for place, numbers in cells.items():
            grid[place] = Mean.of(numbers).mean
        found[label] = grid
    return found, [show(x) for x in xs], [show(y) if y_key else "" for y in ys], x_key, y_key


def _levels(settings: Sequence[Row], key: str) -> list[Any]:
    values = list({repr(value): value for row in settings for value in (row.setting.get(key),)}.values())  # maybe lists
    return sorted(values) if all(map(is_number, values)) else values


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
