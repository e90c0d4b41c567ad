"""What all figures share: colours, axes, captions and legends."""

import re
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from makemore_pl.figures.series import Floats

INK, MUTED, GRID, BAND, RULE = "#24292f", "#5b6571", "#dde2e7", "#dcece4", "#a4161a"
LAYERS = ("#141e5a", "#5a2ca0", "#a8329a", "#d9466b", "#dc7b12")
"""Colours from the first layer to the last. They differ in lightness, so one can tell them apart without colour too."""
OUTPUT, EMBEDDING, FAINT = "#006b60", "#7c8694", "#b4bcc5"
WIDTH, HEIGHT = 4.6, 3.1
"""Inches of one panel. It is 442 CSS pixels wide, so text of 9 points can still be read on a phone."""
DPI = 604 / WIDTH
"""Of a picture in pixels: a panel is twice as wide as the narrowest cards of TensorBoard."""
TEXT = 9.0
COLUMNS = 5
"""Columns of a legend: as many as fit into the width of a panel."""
LEGEND_ROW = 0.18

Line = tuple[str, str | tuple[float, tuple[float, ...]]]


@dataclass(frozen=True, slots=True)
class Curve:
    """A line, or a dot if it has only one point."""

    label: str
    """The entry in the legend; "" leaves it out."""
    x: Floats
    y: Floats
    colour: str
    dashes: str | tuple[float, tuple[float, ...]] = "-"
    width: float = 1.2


def plot(ax: Axes, curves: Iterable[Curve]) -> None:
    for each in curves:
        dot: dict[str, Any] = {"marker": "o", "markersize": 3} if len(each.x) == 1 else {}
        ax.plot(
            each.x, each.y, color=each.colour, linestyle=each.dashes, linewidth=each.width,
            label=each.label or "_", **dot,
        )  # fmt: skip


def line_of(name: str, place: int = 0) -> Line:
    """Colour and dashes of a layer or parameter, the same in every figure. A name without a number goes by `place`."""
    if name.startswith("embedding"):
        return EMBEDDING, (0, (1, 1.2))
    if name.startswith("output"):
        return OUTPUT, (0, (4, 1.5))
    found = re.search(r"\d+", name)
    depth = int(found.group()) if found else place
    return LAYERS[depth % len(LAYERS)], ("-", (0, (5, 1, 1, 1)), (0, (2, 1)))[min(depth // len(LAYERS), 2)]


def canvas(
    rows: int = 1,
    columns: int = 1,
    legend_rows: int = 1,
    height: float = HEIGHT,
    left: float = 0.7,
    head: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row.

    Margins are fixed, so that pictures do not jump when a slider moves. Panels with up to two rows of legend are all of
    the same height.

    Args:
        height: inches of one panel with title, legend and labels.
        left: inches of its left margin.
        head: inches above all panels.
    """
    top, right, bottom = 0.36 + LEGEND_ROW * legend_rows, 0.16, 0.48
    height += LEGEND_ROW * max(legend_rows - 2, 0)
    whole = WIDTH * columns, height * rows + head
    figure = Figure(figsize=whole, dpi=DPI)
    size = (WIDTH - left - right) / whole[0], (height - top - bottom) / whole[1]
    corners = [
        (column * WIDTH + left, (rows - 1 - row) * height + bottom) for row in range(rows) for column in range(columns)
    ]
    return figure, [_dress(figure.add_axes((x / whole[0], y / whole[1], *size))) for x, y in corners]


def _dress(ax: Axes) -> Axes:
    ax.set_facecolor("none")
    ax.tick_params(colors=MUTED, labelsize=TEXT, length=3, width=0.6, which="major")
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=MUTED, linewidth=0.6)
    for axis, label, place in ((ax.xaxis, (0.5, 0), (0, -20)), (ax.yaxis, (0, 0.5), (-37, 0))):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(FuncFormatter(short_number))
        # at a fixed place, because it takes matplotlib longer to find a free place than to draw the label
        shift = ScaledTranslation(place[0] / 72, place[1] / 72, ax.figure.dpi_scale_trans)
        axis.set_label_coords(label[0], label[1], transform=ax.transAxes + shift)
    return ax


def caption(ax: Axes, title: str, xlabel: str = "", ylabel: str = "", legend_rows: int = 1) -> None:
    """Write the title at the upper left, above the legend, and the labels of the axes."""
    pad = 7 + 72 * LEGEND_ROW * legend_rows
    ax.set_title(title, loc="left", x=_edge(ax), y=1, fontsize=TEXT + 1, fontweight="bold", color=INK, pad=pad)
    ax.set_xlabel(xlabel, fontsize=TEXT, color=MUTED)
    ax.set_ylabel(ylabel, fontsize=TEXT, color=MUTED)


def _edge(ax: Axes) -> float:
    """The x at which the area of a panel begins, right of its neighbour, in units of the panel's width."""
    figure = ax.get_figure(root=True)
    assert figure
    place, width = ax.get_position(), figure.get_figwidth()
    return float((0.12 - place.x0 * width % WIDTH) / (place.width * width))


def legend_rows(names: Sized, columns: int = COLUMNS) -> int:
    """Rows that a legend of these names takes, at least one."""
    return max(1, -(-len(names) // columns))


def legend(ax: Axes, columns: int = COLUMNS) -> None:
    """Draw the legend between title and panel, row by row."""
    _legend(ax, [ax], columns, "lower left", (_edge(ax) - 0.015, 0.985))


def legend_of_all(figure: Figure) -> None:
    """Draw one legend for all panels at the top of the figure."""
    axes = sorted(figure.axes, key=lambda ax: -len(ax.lines))
    _legend(figure, axes, 2 * COLUMNS, "upper left", (0.005, 1.0))


def _legend(
    of: Axes | Figure,
    axes: Sequence[Axes],
    columns: int,
    place: Literal["lower left", "upper left"],
    anchor: tuple[float, float],
) -> None:
    entries = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    # matplotlib fills a legend column by column, so reorder the entries
    entries = {label: entries[label] for column in range(columns) for label in list(entries)[column::columns]}
    if entries:
        of.legend(
            list(entries.values()),
            list(entries),
            loc=place,
            bbox_to_anchor=anchor,
            ncols=columns,
            frameon=False,
            fontsize=TEXT - 0.5,
            labelcolor=INK,
            handlelength=1.4,
            handletextpad=0.5,
            columnspacing=0.9,
            labelspacing=0.25,
            borderaxespad=0.2,
        )


def short_number(value: float, _: object = None) -> str:
    """A number in few characters: 0.0005, 12, 1.5k, 1e+07."""
    if abs(value) < 1e-12:
        return "0"
    return (f"{value / 1000:.4g}k" if 1e3 <= abs(value) < 1e6 else f"{value:.4g}").replace("-", "−")


def step_axis(ax: Axes, last: float, log: bool = True) -> None:
    """An axis of steps from 0 to `last`. If logarithmic, it is linear up to step 1, so that step 0 is on it."""
    if log:
        ax.set_xscale("symlog", linthresh=1, linscale=0.45)
        decades = [10**power for power in range(8) if 10**power <= max(last, 1)]
        ax.xaxis.set_major_locator(FixedLocator([0, *decades]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(-0.12, max(last, 1) * 1.15)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlim(-last * 0.01, last * 1.02 or 1)
    ax.xaxis.set_major_formatter(FuncFormatter(short_number))


def mark_drops(ax: Axes, drops: Iterable[float]) -> None:
    """Draw a vertical line at each step where the learning rate drops. The labels of several are below each other."""
    for place, step in enumerate(drops):
        ax.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
        ax.annotate(
            "lr drops", (step, 1), (-3, -2 - 10 * (place % 4)), xycoords=ax.get_xaxis_transform(),
            textcoords="offset points", ha="right", va="top", fontsize=TEXT - 1, color=MUTED,
        )  # fmt: skip
