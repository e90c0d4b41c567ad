"""Pictures that change from step to step. The axes are drawn once; for each step only the moving parts are, as SVG.

So the axes are the same at every step, and a step takes a hundredth of the time of a figure.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from makemore_pl.figures.canvas import Curve, legend, plot

POINTS = 72
"""Units of SVG in an inch."""


@dataclass(frozen=True, slots=True)
class Film:
    """A figure without its moving parts, and step -> the moving parts as SVG in the figure's coordinates."""

    stage: Figure
    moves: Mapping[int, str]


def shoot(figure: Figure, names: Sequence[str], curves: Callable[[int], list[Curve]], steps: Sequence[int]) -> Film:
    """A film of curves on a figure with one panel, whose limits are set already. The legend has all of `names`."""
    (ax,) = figure.axes
    frames = {step: curves(step) for step in steps}
    by_label = {curve.label: curve for step in steps for curve in frames[step] if curve.label}
    before = set(ax.lines)
    plot(ax, [by_label[name] for name in names if name in by_label])
    legend(ax)
    for line in set(ax.lines) - before:
        line.remove()
    return Film(figure, {step: _paths(ax, each) for step, each in frames.items()})


def _paths(ax: Axes, curves: Sequence[Curve]) -> str:
    return "".join(_path(ax, curve) for curve in curves)


def _path(ax: Axes, curve: Curve) -> str:
    points = _to_svg(ax, np.column_stack([curve.x, curve.y]))
    if len(points) == 1:
        ((x, y),) = points
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{curve.colour}"/>' if np.isfinite(y) else ""
    letters, down = [], False
    for x, y in points.tolist():
        finite = np.isfinite(x) and np.isfinite(y)
        letters += [f"{'L' if down else 'M'}{x:.1f} {y:.1f}"] if finite else []
        down = bool(finite)
    dashes = "" if isinstance(curve.dashes, str) else " ".join(f"{each * curve.width:.4g}" for each in curve.dashes[1])
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<path d="{"".join(letters)}" fill="none" stroke="{curve.colour}" stroke-width="{curve.width}"{dashed} '
        'stroke-linejoin="round"/>'
    )


def _to_svg(ax: Axes, points: ArrayLike) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    figure = ax.get_figure(root=True)
    assert figure
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = ax.transData.transform(points).T * POINTS / figure.dpi
    x, y = np.where(np.isfinite(x), x, np.nan), np.where(np.isfinite(y), y, np.nan)
    # clip far outside of the panel, where nothing is visible, so that numbers stay short
    x, y = np.clip(x, -1e4, 1e4), np.clip(figure.get_figheight() * POINTS - y, -1e4, 1e4)
    return np.column_stack([x, y])


def panel(ax: Axes) -> tuple[float, float, float, float]:
    """Left, top, width and height of the panel in the figure's SVG."""
    figure = ax.get_figure(root=True)
    assert figure
    place, (width, height) = ax.get_position(), figure.get_size_inches() * POINTS
    return place.x0 * width, (1 - place.y1) * height, place.width * width, place.height * height


def shoot_rasters(figure: Figure, rasters: Mapping[int, ArrayLike]) -> Film:
    """A film of boolean arrays (rows, columns), white where true, on a figure with one panel."""
    x, y, width, height = panel(figure.axes[0])
    moves = {}
    for step, raster in rasters.items():
        file = io.BytesIO()
        Image.fromarray(np.asarray(raster, dtype=np.uint8) * 255).convert("1").save(file, "PNG")
        picture = base64.b64encode(file.getvalue()).decode()
        moves[step] = (
            f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none" '
            f'style="image-rendering: pixelated" href="data:image/png;base64,{picture}"/>'
        )
    return Film(figure, moves)
