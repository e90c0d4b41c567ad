"""Pictures of one run: functions from numbers to a matplotlib Figure. Object-oriented API, so no global state."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MultipleLocator, NullLocator
from numpy.typing import ArrayLike

from makemore_pl.figures.canvas import (
    BAND,
    FAINT,
    LAYERS,
    MUTED,
    RULE,
    TEXT,
    canvas,
    caption,
    legend,
    legend_of_all,
    legend_rows,
    line_of,
    plain,
    short,
    step_axis,
)
from makemore_pl.figures.series import Histogram, density, floats, limits, reach, running_mean, thin

BAND_OF_UPDATES = (-4.0, -1.5)
"""Below: TheDeepChecker. Above: calibrated on the lecture's networks, which are healthy at -1.9 to -2.3."""
LECTURE_LINE = -3.0


def distributions(histograms: Mapping[str, Histogram], title: str, xlabel: str) -> Figure:
    """One density line a layer, as in the lecture's pictures of activations and gradients."""
    rows = legend_rows(histograms)
    figure, (ax,) = canvas(legend_rows=rows)
    _draw_distributions(ax, histograms)
    caption(ax, title, xlabel, "density", rows)
    legend(ax)
    return figure


def lines(
    steps: ArrayLike,
    values: Mapping[str, ArrayLike],
    title: str,
    ylabel: str = "",
    references: Mapping[str, float] | None = None,
    log: bool = True,
    log_values: bool = False,
) -> Figure:
    """A quantity over the steps, a line for each layer or parameter; None and NaN leave a gap.

    Args:
        references: horizontal lines by label; drawn where they are near the values.
        log: logarithmic steps, with room for step 0; else linear.
        log_values: logarithmic values, for what differs in size from layer to layer.
    """
    rows = legend_rows(values)
    figure, (ax,) = canvas(legend_rows=rows)
    _draw_lines(ax, steps, values, log=log)
    if bounds := limits(*values.values()):
        low, high = bounds
        near = {name: y for name, y in (references or {}).items() if 2 * low - high <= y <= 2 * high - low}
        bounds = limits(*values.values(), list(near.values())) or bounds
        if log_values:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(numticks=5))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(FuncFormatter(plain))
        else:
            ax.set_ylim(*bounds)
        _draw_references(ax, near)
    caption(ax, title, "step", ylabel, rows)
    if len(values) > 1:
        legend(ax)
    return figure


def update_ratios(
    steps: ArrayLike,
    values: Mapping[str, ArrayLike],
    band: tuple[float, float] = BAND_OF_UPDATES,
    lecture_line: float = LECTURE_LINE,
    last: float | None = None,
) -> Figure:
    """Update:data ratios over the steps, the band they are healthy in, and the lecture's line.

    Args:
        last: where the axis of steps ends, if not with `steps`.
    """
    rows = legend_rows(values)
    figure, (ax,) = canvas(legend_rows=rows)
    _draw_updates(ax, steps, values, band, lecture_line, last)
    caption(ax, "update:data ratio", "step", "log10", rows)
    legend(ax)
    return figure


def saturation_raster(saturated: ArrayLike, title: str) -> Figure:
    """The lecture's picture: white where |activation| > 0.97, a row an example, a column a unit.

    Args:
        saturated: (examples, units), boolean.
    """
    raster = np.asarray(saturated, dtype=bool)
    examples, units = raster.shape
    height = min(max(4.32 * examples / max(units, 1), 0.5), 4.32)
    figure, (ax,) = canvas(legend_rows=0, height=height + 0.84, left=0.12)
    ax.imshow(raster, cmap="gray", vmin=0, vmax=1, interpolation="none", aspect="auto")
    ax.grid(visible=False)
    ax.spines[:].set(visible=True, color=MUTED, linewidth=0.6)
    caption(ax, title, f"{units} units across, {examples} examples down", "", 0)
    ax.xaxis.set_label_coords(0.5, -0.08 / height)
    ax.set_xticks([])
    ax.set_yticks([])
    return figure


def four_pictures(
    activations: Mapping[str, Histogram],
    activation_grads: Mapping[str, Histogram],
    weight_grads: Mapping[str, Histogram],
    steps: ArrayLike,
    updates: Mapping[str, ArrayLike],
    title: str = "",
) -> Figure:
    """The lecture's four pictures in one: three distributions at one step, and the update:data ratios up to it.

    Args:
        title: which step it is.
    """
    groups = {"activation": activations, "activation gradient": activation_grads, "weight gradient": weight_grads}
    figure, panels = canvas(2, 2, legend_rows=0, height=2.8, head=0.3)
    for ax, (name, histograms) in zip(panels, groups.items(), strict=False):
        _draw_distributions(ax, histograms)
        caption(ax, f"{name}s, {title}" if title else f"{name}s", name, "density", 0)
    _draw_updates(panels[3], steps, updates, BAND_OF_UPDATES, LECTURE_LINE, None)
    caption(panels[3], "update:data ratio", "step", "log10", 0)
    legend_of_all(figure)
    return figure


def loss_curve(
    steps: ArrayLike,
    train: ArrayLike,
    val_steps: ArrayLike,
    val: ArrayLike,
    baselines: Mapping[str, float],
    log: bool = True,
    mean: ArrayLike | None = None,
) -> Figure:
    """Training and validation loss with baselines.

    Args:
        log: logarithmic steps and all of the losses, for the beginning; else linear steps, close up, for the whole run.
        mean: the training loss with less noise, at `steps`; by default the running mean of `train`.
    """
    steps, train, val = floats(steps), floats(train), floats(val)
    smooth = running_mean(steps, train) if mean is None else floats(mean)
    figure, (ax,) = canvas()
    ax.plot(*thin(steps, train), color=FAINT, linewidth=0.8, label="train, minibatch")
    ax.plot(*thin(steps, smooth), color=LAYERS[1], linewidth=1.4, label="train, mean")
    ax.plot(val_steps, val, color=LAYERS[4], linewidth=1.4, marker="o", markersize=3.5, label="val")
    step_axis(ax, max([0.0, *steps, *floats(val_steps)]), log)
    if log:
        _show_all_losses(ax, limits(train, val, list(baselines.values())))
        _draw_references(ax, baselines)
    elif bounds := limits(smooth[steps >= max(steps, default=0) / 10], val, sorted(baselines.values())[:1], margin=0.1):
        ax.set_ylim(*bounds)
        _draw_references(ax, {name: y for name, y in baselines.items() if bounds[0] < y < bounds[1]})
    caption(ax, "loss, logarithmic steps" if log else "loss, linear steps", "step", "nats")
    legend(ax, 3)
    return figure


def _show_all_losses(ax: Axes, bounds: tuple[float, float] | None) -> None:
    if bounds:
        low, high = bounds
        ax.set_ylim(low, high)
        if high > 10:  # a confidently wrong start would press the rest flat
            ax.set_yscale("log")
            ax.set_ylim(max(low, 1.5), high * 1.1)
            ax.yaxis.set_major_locator(FixedLocator([2, 3, 5, 10, 20, 30, 50, 100]))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter("{x:g}")


def _draw_distributions(ax: Axes, histograms: Mapping[str, Histogram]) -> None:
    if not histograms:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", fontsize=TEXT, color=MUTED)
        ax.xaxis.set_major_locator(NullLocator())
    names = short(histograms)
    for place, (name, (edges, counts)) in enumerate(histograms.items()):
        colour, dashes = line_of(name, place)
        ax.plot(*density(edges, counts), color=colour, linestyle=dashes, linewidth=1.2, label=names[name])
    ends = {abs(float(edge)) for edges, _ in histograms.values() for edge in floats(edges)[[0, -1]]}
    bound = 1.0 if ends == {1.0} else reach(histograms)  # tanh: always all of its range
    if bound:
        ax.set_xlim(-bound * 1.02, bound * 1.02)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(NullLocator())  # the shape is what tells; and half of the cost is ticks


def _draw_lines(
    ax: Axes, steps: ArrayLike, values: Mapping[str, ArrayLike], last: float | None = None, log: bool = True
) -> None:
    names, steps = short(values), floats(steps)
    for place, (name, each) in enumerate(values.items()):
        colour, dashes = line_of(name, place)
        ax.plot(*thin(steps, each), color=colour, linestyle=dashes, linewidth=1.2, label=names[name])
        if last is not None:  # unfinished: where it is now
            ax.plot(steps[-1:], floats(each)[-1:], "o", color=colour, markersize=3)
    step_axis(ax, max(steps, default=0.0) if last is None else last, log)


def _draw_updates(
    ax: Axes,
    steps: ArrayLike,
    values: Mapping[str, ArrayLike],
    band: tuple[float, float],
    lecture_line: float,
    last: float | None,
) -> None:
    ax.axhspan(*band, color=BAND, linewidth=0, zorder=0)
    ax.axhline(lecture_line, color=RULE, linewidth=0.8, linestyle=(0, (1, 1.5)))
    _draw_lines(ax, steps, values, last)
    low, high = limits(*values.values(), [band[0] - 0.5, band[1] + 0.5], margin=0.02) or band
    ax.set_ylim(max(low, -8), min(high, 2))
    ax.yaxis.set_major_locator(MultipleLocator(1))


def _draw_references(ax: Axes, references: Mapping[str, float]) -> None:
    for place, (name, y) in enumerate(sorted(references.items(), key=lambda item: -item[1])):
        ax.axhline(y, color=RULE, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
        ax.annotate(
            name,
            (1 - 0.27 * (place % 3), y),  # side by side, for on a logarithmic axis they can be close
            (0, 1.5),
            xycoords=ax.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            fontsize=TEXT - 1,
            color=RULE,
        )
