"""Pictures of many things at once: grids of numbers, curves of many runs, characters in the plane."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from makemore_pl.figures.canvas import (
    INK,
    LAYERS,
    MUTED,
    OUTPUT,
    TEXT,
    canvas,
    caption,
    legend,
    legend_rows,
    line_of,
    mark_drops,
    short_number,
    step_axis,
)
from makemore_pl.figures.fonts import drawable
from makemore_pl.figures.series import floats, limits, principal_components, thin

VOWELS = "aeiou"


def heat_map(
    panels: Mapping[str, ArrayLike],
    x_labels: Sequence[str],
    y_labels: Sequence[str],
    title: str,
    x_name: str = "",
    y_name: str = "",
    form: str = "{:.3f}",
    span: tuple[float, float] | None = None,
) -> Figure:
    """Grids of numbers with one scale of colours. Each number is written in its cell; nan is a dash.

    Args:
        panels: grids (y, x) by name.
        span: the numbers at which the colours begin and end, by default the smallest and the largest. Numbers outside
            of it have the first or the last colour.
    """
    grids = {name: floats(grid) for name, grid in panels.items()}
    width = max(4.6, 0.62 * len(x_labels) + 2.0)
    height = 0.8 + len(grids) * (0.34 * len(y_labels) + 0.3)
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    finite = np.concatenate([grid[np.isfinite(grid)] for grid in grids.values()])
    low, high = span or ((finite.min(), finite.max()) if finite.size else (0.0, 1.0))
    axes = figure.subplots(len(grids), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, grid) in zip(axes, grids.items(), strict=True):
        mesh = ax.pcolormesh(np.ma.masked_invalid(grid), cmap="viridis", vmin=low, vmax=high, edgecolor="none")
        for (y, x), value in np.ndenumerate(grid):
            text = form.format(value).replace("-", "−") if np.isfinite(value) else "–"
            ink = _readable_on(mesh.to_rgba(value)) if np.isfinite(value) else MUTED
            ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=TEXT, color=ink)
        ax.set_xticks(np.arange(len(x_labels)) + 0.5, list(map(drawable, x_labels)))
        ax.set_yticks(np.arange(len(y_labels)) + 0.5, list(map(drawable, y_labels)))
        ax.tick_params(colors=INK, labelsize=TEXT, length=0)
        ax.set_facecolor("none")
        ax.invert_yaxis()
        ax.spines[:].set_visible(False)
        ax.set_title(name, loc="left", fontsize=TEXT, color=MUTED)
        ax.set_ylabel(y_name, fontsize=TEXT, color=MUTED)
    axes[-1].set_xlabel(x_name, fontsize=TEXT, color=MUTED)
    scale = figure.colorbar(mesh, ax=list(axes), fraction=0.04, pad=0.02)
    assert scale.solids
    scale.solids.set_rasterized(True)  # otherwise the SVG has a hundred shapes for it
    scale.outline.set_visible(False)
    scale.ax.tick_params(colors=MUTED, labelsize=TEXT, length=2, width=0.6)
    scale.locator = MaxNLocator(4)
    scale.formatter = FuncFormatter(short_number)
    scale.update_ticks()
    figure.suptitle(title, x=0.02, ha="left", fontsize=TEXT + 1, fontweight="bold", color=INK)
    return figure


def _readable_on(rgba: ArrayLike) -> str:
    """Black or white: the one with more contrast, as WCAG defines it."""
    rgb = floats(rgba)[:3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return "#000000" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "#ffffff"


def embeddings_2d(embedding: ArrayLike, characters: str) -> Figure:
    """Learned embeddings in their two principal components (PCA). Each character is drawn as its own marker.

    Args:
        embedding: (V, n_embd), row i the embedding of characters[i]; the first is the end mark.
    """
    points, shares = principal_components(embedding)
    latin = set(characters) >= set(VOWELS)
    figure, (ax,) = canvas(height=4.4)
    ax.plot(*points[0], "s", color=OUTPUT, markersize=6)  # the end mark "." as a square, because a dot is hard to see
    for character, (x, y) in zip(characters[1:], points[1:], strict=True):
        vowel = latin and character in VOWELS
        colour, weight = (LAYERS[3], "bold") if vowel else (INK, "normal")
        ax.text(x, y, character, ha="center", va="center", fontsize=TEXT + 2, color=colour, fontweight=weight)
    for label, colour in (("vowel", LAYERS[3]), ("consonant", INK))[: 2 * latin]:
        ax.plot([], [], "s", color=colour, markersize=5, label=label)
    ax.plot([], [], "s", color=OUTPUT, markersize=5, label="end mark")
    for axis, bounds in (("x", limits(points[:, 0])), ("y", limits(points[:, 1]))):
        ax.set(**{f"{axis}lim": bounds})
    percent = [
        f"{axis} principal component, {share:.0%} of the variance"
        for axis, share in zip(("first", "second"), shares, strict=True)
    ]
    caption(ax, "embeddings of the characters (PCA)", percent[0], percent[1])
    legend(ax)
    return figure


def overlaid_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str,
    ylabel: str,
    groups: Mapping[str, str],
    drops: ArrayLike = (),
) -> Figure:
    """Many curves over linear steps, with a colour for each group. A curve shows its label under the mouse pointer.

    Args:
        groups: label of a curve -> its group; the legend has the groups in this order.
        drops: steps at which the learning rate drops.
    """
    levels = list(dict.fromkeys(groups.values()))
    apart = max(1, (len(LAYERS) - 1) // max(1, len(levels) - 1))  # few groups get colours that are far apart
    rows = legend_rows(levels, 3)
    figure, (ax,) = canvas(legend_rows=rows, height=3.6)
    for label, (steps, values) in curves.items():
        colour, dashes = line_of("", apart * levels.index(groups[label]))
        (line,) = ax.plot(*thin(steps, values), color=colour, linestyle=dashes, linewidth=1.2)
        line.set_gid(f"hover:{label}")
    for place, level in enumerate(levels):
        colour, dashes = line_of("", apart * place)
        ax.plot([], [], color=colour, linestyle=dashes, label=level)
    step_axis(ax, max([1.0, *(float(step) for steps, _ in curves.values() for step in floats(steps)[-1:])]), log=False)
    ends = {label: floats(values)[-1] for label, (_, values) in curves.items() if len(floats(values))}
    best = sorted(ends, key=lambda label: (np.isnan(ends[label]), ends[label]))[: max(1, 3 * len(ends) // 4)]
    shown = [curves[label] for label in best]  # runs that diverged do not decide the scale
    if bounds := limits(*(floats(y)[floats(x) >= max(floats(x), default=0) / 10] for x, y in shown)):
        ax.set_ylim(*bounds)
    mark_drops(ax, floats(drops))
    caption(ax, title, "step", ylabel, rows)
    legend(ax, 3)
    return figure
