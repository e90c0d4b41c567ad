"""The lecture's pictures as figures, or as films over many steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MultipleLocator, NullLocator
from numpy.typing import ArrayLike

from makemore_pl.figures.canvas import (
    BAND,
    GRID,
    MUTED,
    RULE,
    TEXT,
    Curve,
    canvas,
    caption,
    legend,
    legend_of_all,
    legend_rows,
    line_of,
    mark_drops,
    plot,
    step_axis,
)
from makemore_pl.figures.curves import curves_of, draw_points
from makemore_pl.figures.film import Film, shoot, shoot_rasters
from makemore_pl.figures.layer_names import short, spoken
from makemore_pl.figures.series import Histogram, density, floats, limits, reach, spread

LECTURE_LINE = -3.0
SATURATED = 0.97
DECADES = 3
"""A logarithmic density is shown over this many decades below its highest point."""
OWN_REACH = 4.0
"""If curves are in units of their own standard deviation, the axis has this many of them to each side of 0."""


def distributions(
    histograms: Mapping[str, Histogram], title: str, xlabel: str, log: bool = False, own_units: bool = False
) -> Figure:
    """A density line for each layer, as in the lecture's pictures of activations and gradients.

    Args:
        log: whether the density is logarithmic, which shows both a high peak and a flat curve.
        own_units: whether each curve is in units of its own standard deviation, for values that differ by decades.
    """
    rows = legend_rows(histograms)
    figure, (ax,) = canvas(legend_rows=rows)
    _frame_distributions(ax, [histograms], log, own_units)
    plot(ax, _density_curves(histograms, own_units))
    caption(ax, title, _unit(xlabel, own_units), _density(log), rows)
    legend(ax)
    return figure


def distribution_film(
    histograms: Mapping[int, Mapping[str, Histogram]],
    title: str,
    xlabel: str,
    log: bool = False,
    own_units: bool = False,
    beside: Sequence[Mapping[str, Histogram]] = (),
) -> Film:
    """The picture of `distributions`, over the steps.

    Args:
        beside: all distributions that must fit into the axes, by default these.
    """
    names = list(dict.fromkeys(name for each in histograms.values() for name in each))
    rows = legend_rows(names)
    figure, (ax,) = canvas(legend_rows=rows)
    _frame_distributions(ax, beside or list(histograms.values()), log, own_units)
    caption(ax, title, _unit(xlabel, own_units), _density(log), rows)
    labels = [short(names)[name] for name in names]
    return shoot(figure, labels, lambda step: _density_curves(histograms[step], own_units), list(histograms))


def update_ratios(
    steps: ArrayLike,
    values: Mapping[str, ArrayLike],
    band: tuple[float, float],
    raw: Mapping[str, ArrayLike] | None = None,
    drops: ArrayLike = (),
) -> Figure:
    """Update:data ratios over the steps, their healthy band, and the lecture's line.

    Args:
        band: lowest and highest healthy ratio, log10.
        raw: the numbers of which `values` are means; they are drawn as faint points.
        drops: steps at which the learning rate drops.
    """
    rows = legend_rows(values)
    figure, (ax,) = canvas(legend_rows=rows)
    draw_points(ax, steps, raw or {})
    plot(ax, curves_of(steps, values))
    _frame_updates(ax, max(floats(steps), default=0.0), list(values.values()), drops, band)
    caption(ax, "update:data ratio", "step", "log10", rows)
    legend(ax)
    return figure


def update_film(
    steps: ArrayLike,
    values: Mapping[str, ArrayLike],
    at: Sequence[int],
    band: tuple[float, float],
    drops: ArrayLike = (),
    beside: Sequence[tuple[ArrayLike, ArrayLike]] = (),
    title: str = "update:data ratio",
) -> Film:
    """The picture of `update_ratios`, at each step of `at` with the numbers up to then.

    Args:
        beside: steps and values of other ratios that must fit into the axes too.
    """
    steps = floats(steps)
    rows = legend_rows(values)
    figure, (ax,) = canvas(legend_rows=rows)
    last = max([0.0, *steps, *(max(floats(each), default=0.0) for each, _ in beside)])
    _frame_updates(ax, last, [*values.values(), *(each for _, each in beside)], drops, band)
    caption(ax, title, "step", "log10", rows)

    def until(step: int) -> list[Curve]:
        seen = steps <= step
        so_far = curves_of(steps[seen], {name: floats(each)[seen] for name, each in values.items()})
        dots = [Curve("", each.x[-1:], each.y[-1:], each.colour) for each in so_far if len(each.x) > 1]
        return [*so_far, *dots]

    return shoot(figure, list(short(values).values()), until, at)


def saturation_raster(saturated: ArrayLike, title: str) -> Figure:
    """The lecture's picture, white where |activation| > 0.97. Rows are examples, columns are units.

    Args:
        saturated: (examples, units), boolean.
    """
    return saturation_rasters({title: saturated})


def saturation_rasters(saturated: Mapping[str, ArrayLike], title: str = "") -> Figure:
    """The rasters of all layers, in two columns if there are several.

    Args:
        saturated: name -> (examples, units), boolean.
        title: is written before the name of the first one.
    """
    rasters = {name: np.asarray(each, dtype=bool) for name, each in saturated.items()}
    columns = min(len(rasters), 2)
    figure, panels = _raster_panels(list(rasters.values()), columns)
    for place, (ax, (name, raster)) in enumerate(zip(panels, rasters.items(), strict=False)):
        _frame_raster(ax, raster, f"{title}, {spoken(name)}" if title and not place else spoken(name))
        ax.imshow(raster, cmap="gray", vmin=0, vmax=1, interpolation="none", aspect="auto")
    for ax in panels[len(rasters) :]:
        ax.remove()
    return figure


def raster_film(rasters: Mapping[int, ArrayLike], title: str) -> Film:
    """The picture of `saturation_raster`, over the steps."""
    first = np.asarray(next(iter(rasters.values())))
    figure, (ax,) = _raster_panels([first], 1)
    _frame_raster(ax, first, title)
    return shoot_rasters(figure, rasters)


def four_pictures(
    activations: Mapping[str, Histogram],
    activation_grads: Mapping[str, Histogram],
    weight_grads: Mapping[str, Histogram],
    steps: ArrayLike,
    updates: Mapping[str, ArrayLike],
    band: tuple[float, float],
    title: str = "",
) -> Figure:
    """The lecture's four pictures in one: three distributions at one step, and the update:data ratios up to it.

    Args:
        title: tells the step.
    """
    figure, panels = canvas(2, 2, legend_rows=0, height=2.8, head=0.3)
    groups = (activations, False, False), (activation_grads, True, False), (weight_grads, True, True)
    names = "activation", "activation gradient", "weight gradient"
    for ax, name, (histograms, log, own_units) in zip(panels, names, groups, strict=False):
        _frame_distributions(ax, [histograms], log, own_units)
        plot(ax, _density_curves(histograms, own_units))
        title_here = f"{name}s, {title}" if title else f"{name}s"
        caption(ax, title_here, _unit(name, own_units), _density(log), 0)
    plot(panels[3], curves_of(steps, updates))
    _frame_updates(panels[3], max(floats(steps), default=0.0), list(updates.values()), (), band)
    caption(panels[3], "update:data ratio", "step", "log10", 0)
    legend_of_all(figure)
    return figure


def side_by_side(groups: Mapping[str, Mapping[str, Histogram]], xlabel: str) -> Figure:
    """Distributions of several networks in one row, with the same axis and logarithmic density.

    Args:
        groups: title -> layer -> histogram.
    """
    figure, panels = canvas(1, len(groups))
    for ax, (title, histograms) in zip(panels, groups.items(), strict=True):
        _frame_distributions(ax, list(groups.values()), log=True, own_units=False)
        plot(ax, _density_curves(histograms, own_units=False))
        caption(ax, title, xlabel, _density(log=True))
        legend(ax)
    return figure


def _unit(xlabel: str, own_units: bool) -> str:
    return f"{xlabel}, in standard deviations of its own" if own_units else xlabel


def _density(log: bool) -> str:
    return "density, log" if log else "density"


def _density_curves(histograms: Mapping[str, Histogram], own_units: bool) -> list[Curve]:
    names, found = short(histograms), []
    for place, (name, (edges, counts)) in enumerate(histograms.items()):
        colour, dashes = line_of(name, place)
        unit = spread(edges, counts) if own_units else 1.0
        found.append(Curve(names[name], *density(floats(edges) / (unit or 1.0), counts), colour, dashes))
    return found


def _frame_distributions(ax: Axes, groups: Sequence[Mapping[str, Histogram]], log: bool, own_units: bool) -> None:
    """Set limits, ticks and shades so that all groups fit in."""
    ax.yaxis.set_major_locator(NullLocator())  # only the shape matters, and ticks take half of the drawing time
    every = {f"{place} {name}": each for place, group in enumerate(groups) for name, each in group.items()}
    if not every:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", fontsize=TEXT, color=MUTED)
        ax.xaxis.set_major_locator(NullLocator())
        return
    if {abs(float(edge)) for edges, _ in every.values() for edge in floats(edges)[[0, -1]]} == {1.0}:
        ax.set_xlim(-1.02, 1.02)  # for tanh, always its whole range
        ax.xaxis.set_major_locator(FixedLocator([-1, 0, 1]))
        for low in (-1.02, SATURATED):
            ax.axvspan(low, low + 1.02 - SATURATED, color=GRID, linewidth=0, zorder=0)
    elif own_units:
        ax.set_xlim(-OWN_REACH, OWN_REACH)
    elif bound := reach(every):
        ax.set_xlim(-bound * 1.02, bound * 1.02)
    peaks = [max([curve.y.max() for curve in _density_curves(group, own_units)], default=0.0) for group in groups]
    top = min(max(peaks), 4 * float(np.median(peaks)) or max(peaks)) or 1.0
    if log:
        ax.set_yscale("log", nonpositive="mask")
        ax.set_ylim(top / 10**DECADES, top * 1.6)
        ax.yaxis.set_major_locator(LogLocator(numticks=DECADES + 2))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.tick_params(axis="y", labelleft=False, length=0)
    else:
        ax.set_ylim(0, top * 1.05)


def _raster_panels(rasters: "Sequence[np.ndarray[Any, Any]]", columns: int) -> tuple[Figure, list[Axes]]:
    height = max(min(max(4.32 * len(each) / max(each.shape[1], 1), 0.5), 4.32) for each in rasters)
    return canvas(-(-len(rasters) // columns), columns, legend_rows=0, height=height + 0.84, left=0.12)


def _frame_raster(ax: Axes, raster: "np.ndarray[Any, Any]", title: str) -> None:
    examples, units = raster.shape
    ax.set(xlim=(-0.5, units - 0.5), ylim=(examples - 0.5, -0.5))
    ax.grid(visible=False)
    ax.spines[:].set(visible=True, color=MUTED, linewidth=0.6)
    caption(ax, title, f"{units} units across, {examples} examples down", "", 0)
    figure = ax.get_figure(root=True)
    assert figure
    ax.xaxis.set_label_coords(0.5, -0.08 / (ax.get_position().height * figure.get_figheight()))
    ax.set_xticks([])
    ax.set_yticks([])


def _frame_updates(
    ax: Axes,
    last: float,
    values: Sequence[ArrayLike],
    drops: ArrayLike,
    band: tuple[float, float],
) -> None:
    ax.axhspan(*band, color=BAND, linewidth=0, zorder=0)
    ax.axhline(LECTURE_LINE, color=RULE, linewidth=0.8, linestyle=(0, (1, 1.5)))
    step_axis(ax, last)
    low, high = limits(*values, [band[0] - 0.5, band[1] + 0.5], margin=0.02) or band
    ax.set_ylim(max(low, -8), min(high, 2))
    ax.yaxis.set_major_locator(MultipleLocator(1))
    mark_drops(ax, floats(drops))
