"""The scaling figure."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from benchmarks.networks import AXES, scaled
from benchmarks.results import Results

LABELS = {"batch_size": "batch size", "n_hidden": "neurons in a hidden layer", "n_layers": "hidden layers"}


def draw(results: Results, path: Path) -> None:
    """Draw µs a step over batch size, width and depth. A number at our points tells how many times faster they are."""
    matplotlib.use("Agg")
    figure, panels = plt.subplots(1, len(AXES), figsize=(9, 3), sharey=True, layout="constrained")
    for panel, (axis, sizes) in zip(panels, AXES.items(), strict=True):
        for contender, label, style in (("1b", "bare loop, nn modules", "s--"), ("3", "makemore_pl", "o-")):
            spreads = [(n, spread) for n in sizes if (spread := results.steady(scaled(axis, n)[0], contender))]
            medians = [spread.median for _, spread in spreads]
            below = [spread.median - spread.low for _, spread in spreads]
            above = [spread.high - spread.median for _, spread in spreads]
            panel.errorbar([n for n, _ in spreads], medians, yerr=[below, above], fmt=style, capsize=2, label=label)
        for n in sizes:
            theirs, ours = (results.steady(scaled(axis, n)[0], contender) for contender in ("1b", "3"))
            if theirs and ours:
                text = f"{theirs.median / ours.median:.1f}×"
                panel.annotate(text, (n, ours.median), (0, -13), textcoords="offset points", ha="center", fontsize=8)
        panel.set(xscale="log" if axis != "n_layers" else "linear", yscale="log", xlabel=LABELS[axis])
        panel.set_xticks(sizes, [str(n) for n in sizes])
        panel.minorticks_off()
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3)
        panel.margins(x=0.1, y=0.15)
    panels[0].set_ylabel("µs a step")
    panels[0].legend(fontsize=8, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
