"""Pictures of numbers over the steps, or over the depth of the network."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import ArrayLike

from makemore_pl.figures.canvas import (
    FAINT,
    LAYERS,
    RULE,
    TEXT,
    Curve,
    canvas,
    caption,
    legend,
    legend_rows,
    line_of,
    mark_drops,
    plot,
    short_number,
    step_axis,
)
from makemore_pl.figures.layer_names import short, spoken
from makemore_pl.figures.series import Histogram, floats, limits, spread, thin, trailing_mean

APART = 10.0
"""If an axis of losses spans more nats than this, the names of the baselines would overlap."""


def lines(
    steps: ArrayLike,
    values: Mapping[str, ArrayLike],
    title: str,
    ylabel: str = "",
    references: Mapping[str, float] | None = None,
    log: bool = True,
    log_values: bool = False,
    raw: Mapping[str, ArrayLike] | None = None,
    drops: ArrayLike = (),
) -> Figure:
    """A quantity over the steps, with a line for each layer or parameter. None and NaN leave a gap.

    Unless the axis of values is logarithmic, it includes 0 and all references.

    Args:
        references: horizontal lines by label.
        log: whether the axis of steps is logarithmic (step 0 is on it too) or linear.
        log_values: whether the axis of values is logarithmic, for values that differ by decades between layers.
        raw: the numbers of which `values` are means; they are drawn as faint points.
        drops: steps at which the learning rate drops.
    """
    references = references or {}
    rows = legend_rows(values)
    figure, (ax,) = canvas(legend_rows=rows)
    draw_points(ax, steps, raw or {})
    plot(ax, curves_of(steps, values))
    step_axis(ax, max(floats(steps), default=0.0), log)
    if log_values and limits(*values.values()):
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(numticks=5))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(short_number))
    elif bounds := limits(*values.values(), list(references.values()), [0.0]):
        low = min(floats([0.0, *(np.nanmin(floats(each), initial=0.0) for each in values.values())]))
        ax.set_ylim(bounds[0] if low < 0 else 0, bounds[1])
    draw_references(ax, references, drops)
    mark_drops(ax, floats(drops))
    caption(ax, title, "step", ylabel, rows)
    if len(values) > 1:
        legend(ax)
    return figure


def over_depth(
    values: Mapping[str, Mapping[str, float]], title: str, ylabel: str, references: Mapping[str, float] | None = None
) -> Figure:
    """One number for each layer, from the first to the last. It shows what the gain does.

    Args:
        values: label of a line (a step or a run) -> layer -> number.
    """
    layers = list(dict.fromkeys(layer for each in values.values() for layer in each))
    figure, (ax,) = canvas()
    for place, (label, by) in enumerate(values.items()):
        colour, dashes = line_of("", 2 * place)
        numbers = [by.get(layer, np.nan) for layer in layers]
        ax.plot(range(len(layers)), numbers, color=colour, linestyle=dashes, marker="o", markersize=3.5, label=label)
    bounds = limits(*(list(by.values()) for by in values.values()), list((references or {}).values()), [0.0])
    positive = [number for by in values.values() for number in by.values() if number > 0]
    if positive and max(positive) > 8 * min(positive):
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(numticks=5))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(short_number))
    elif bounds:
        ax.set_ylim(0, bounds[1])
    ax.set_xlim(-0.2, len(layers) - 0.8)
    ax.set_xticks(range(len(layers)), [spoken(layer).removeprefix("layer ") for layer in layers])
    draw_references(ax, references or {})
    caption(ax, title, "layer", ylabel)
    legend(ax)
    return figure


def spread_over_depth(
    activations: Mapping[str, Histogram], gradients: Mapping[str, Histogram], title: str = "spread over depth"
) -> Figure:
    """Standard deviation about 0 of each layer's activations, and of their gradients relative to the last layer's."""
    stds = {name: spread(*each) for name, each in activations.items()}
    grads = {name: spread(*each) for name, each in gradients.items()}
    last = list(grads.values())[-1] if grads else 0.0
    relative = {name: each / last for name, each in grads.items()} if last else {}
    values = {"activations": stds, "gradients by the last layer's": relative}
    return over_depth({label: by for label, by in values.items() if by}, title, "std")


def loss_curve(
    steps: ArrayLike,
    train: ArrayLike,
    val_steps: ArrayLike,
    val: ArrayLike,
    baselines: Mapping[str, float],
    log: bool = True,
    mean: ArrayLike | None = None,
    drops: ArrayLike = (),
    whole: bool = False,
) -> Figure:
    """Training and validation loss with baselines.

    Args:
        log: logarithmic steps with all losses, which shows the beginning; else linear steps with the lower losses only.
        mean: a less noisy training loss at `steps`; by default the trailing mean of `train`.
        whole: linear steps with all losses; a confidently wrong start looks like a hockey stick there.
    """
    steps, train, val = floats(steps), floats(train), floats(val)
    smooth = trailing_mean(steps, train, drops) if mean is None else floats(mean)
    figure, (ax,) = canvas()
    ax.plot(*thin(steps, train), ".", color=FAINT, markersize=2.5, label="train, minibatch")
    ax.plot(*thin(steps, smooth), color=LAYERS[1], linewidth=1.4, label="train, mean")
    ax.plot(val_steps, val, color=LAYERS[4], linewidth=1.4, marker="o", markersize=3.5, label="val")
    step_axis(ax, max([0.0, *steps, *floats(val_steps)]), log)
    names = dict(baselines)
    if whole:
        bounds = limits(train, val, list(baselines.values()), [0.0])
        ax.set_ylim(0, bounds[1] if bounds else 1)
        names = {name: y for name, y in baselines.items() if name == "uniform"}
    elif log:
        _show_all_losses(ax, limits(train, val, list(baselines.values())))
    elif bounds := limits(smooth[steps >= max(steps, default=0) / 10], val, sorted(baselines.values())[:1], margin=0.1):
        ax.set_ylim(*bounds)
        names = {name: y for name, y in baselines.items() if bounds[0] < y < bounds[1]}
        if bounds[1] - bounds[0] > APART:
            names = {name: y for name, y in names.items() if name == "uniform"}
    draw_references(ax, names, drops)
    mark_drops(ax, floats(drops))
    scale = "logarithmic steps" if log else "linear axes" if whole else "close up"
    caption(ax, f"loss, {scale}", "step", "nats")
    legend(ax, 3)
    return figure


def losses(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]], groups: Sequence[str], log: bool = True, drops: ArrayLike = ()
) -> Figure:
    """Losses of several runs, with a colour for each group; all curves of a group but the first are dashed.

    Args:
        curves: "group, name" -> steps and losses.
        log: logarithmic steps with all losses, which shows the beginning; else linear steps with the lower losses only.
    """
    figure, (ax,) = canvas(legend_rows=2)
    seen: dict[str, int] = {}
    for label, (steps, values) in curves.items():
        group = next(each for each in groups if label.startswith(f"{each}, "))
        colour = LAYERS[3 * groups.index(group) % len(LAYERS)]
        dashes = "-" if group not in seen else (0, (4, 1.5))
        seen[group] = 1
        ax.plot(*thin(steps, values), color=colour, linestyle=dashes, linewidth=1.4, label=label)
        if len(floats(steps)) == 1:
            ax.plot(steps, values, "o", color=colour, markersize=4, label="_")
    last = max([0.0, *(step for steps, _ in curves.values() for step in floats(steps)[-1:])])
    step_axis(ax, last, log)
    if log:
        _show_all_losses(ax, limits(*(values for _, values in curves.values())))
    elif bounds := limits(*(floats(values)[floats(steps) >= last / 10] for steps, values in curves.values())):
        ax.set_ylim(*bounds)
    mark_drops(ax, floats(drops))
    caption(ax, "loss, logarithmic steps" if log else "loss, close up", "step", "nats", 2)
    legend(ax, 2)
    return figure


def _show_all_losses(ax: Axes, bounds: tuple[float, float] | None) -> None:
    if bounds:
        low, high = bounds
        ax.set_ylim(low, high)
        if high > 10:  # on a linear axis a confidently wrong start would flatten the rest
            ax.set_yscale("log")
            ax.set_ylim(max(low, 1.5), high * 1.1)
            ticks = FixedLocator([2, 3, 5, 10, 20, 30, 50, 100]) if high < 100 else LogLocator(numticks=6)
            ax.yaxis.set_major_locator(ticks)
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(FuncFormatter(short_number))


def curves_of(steps: ArrayLike, values: Mapping[str, ArrayLike]) -> list[Curve]:
    """A curve for each layer or parameter, in its own colour."""
    names = short(values)
    found = []
    for place, (name, each) in enumerate(values.items()):
        colour, dashes = line_of(name, place)
        found.append(Curve(names[name], *thin(steps, each), colour, dashes))
    return found


def draw_points(ax: Axes, steps: ArrayLike, values: Mapping[str, ArrayLike]) -> None:
    """Draw faint points in the colours of their layers."""
    for place, (name, each) in enumerate(values.items()):
        ax.plot(*thin(steps, each, 200), ".", color=line_of(name, place)[0], markersize=2, alpha=0.3, label="_")


def draw_references(ax: Axes, references: Mapping[str, float], drops: ArrayLike = ()) -> None:
    right = 1.0
    if floats(drops).size:  # if the label of a drop is near the right edge, the names stand left of it
        drop = float(ax.transAxes.inverted().transform(ax.transData.transform((float(floats(drops)[0]), 1)))[0])
        right = drop - 0.16 if drop > 0.65 else 1.0
    for place, (name, y) in enumerate(sorted(references.items(), key=lambda item: -item[1])):
        ax.axhline(y, color=RULE, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
        ax.annotate(
            name,
            (right - 0.27 * (place % 3), y),  # side by side, because on a logarithmic axis the lines can be close
            (0, 1.5),
            xycoords=ax.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            fontsize=TEXT - 1,
            color=RULE,
        )
