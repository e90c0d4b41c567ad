"""Computes the numbers that pictures show: densities, trailing means, principal components. It needs NumPy only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Histogram = tuple[ArrayLike, ArrayLike]
"""Edges (n + 1) and counts (n)."""


def floats(values: Any) -> Floats:
    """The values as an array of float64; None becomes NaN."""
    return np.asarray(values, dtype=np.float64)


def density(edges: ArrayLike, counts: ArrayLike) -> tuple[Floats, Floats]:
    """The centers of the bins, and a density that integrates to 1, or is 0 everywhere if nothing was counted."""
    edges, counts = floats(edges), floats(counts)
    total = counts.sum()
    centers = (edges[:-1] + edges[1:]) / 2
    return centers, counts / (np.diff(edges) * total) if total else np.zeros_like(centers)


def reach(histograms: Mapping[str, Histogram], share: float = 0.995) -> float:
    """How far from 0 an axis must reach to hold `share` of each histogram, so without long tails; 0 without counts."""
    bounds = [0.0]
    for edges, counts in histograms.values():
        edges, counts = floats(edges), floats(counts)
        outer = np.maximum(abs(edges[:-1]), abs(edges[1:]))
        order = np.argsort(outer, kind="stable")
        if total := counts.sum():
            place = np.searchsorted(np.cumsum(counts[order]), share * total)
            bounds.append(float(outer[order][min(place, len(outer) - 1)]))
    return max(bounds)


def trailing_mean(steps: ArrayLike, values: ArrayLike, drops: ArrayLike = (), window: int = 21) -> Floats:
    """For each value, the mean of itself and the values before it: at most `window`, and none before 4/5 of its step.

    So the mean is over few steps at the beginning, where losses fall fast. NaN is left out.

    Args:
        drops: steps at which the learning rate changes; no mean has values from both sides of one.
    """
    steps, values = floats(steps), floats(values)
    place = np.arange(len(values))
    since = np.r_[0, np.searchsorted(steps, floats(drops))]
    begun = since[np.searchsorted(since, place, side="right") - 1] if len(values) else place
    first = np.maximum.reduce([np.searchsorted(steps, steps * 0.8), place - window + 1, begun])
    finite = np.isfinite(values)
    total = np.r_[0.0, np.cumsum(np.where(finite, values, 0.0))]
    count = np.r_[0, np.cumsum(finite)]
    n = count[place + 1] - count[first]
    means: Floats = np.divide(total[place + 1] - total[first], n, out=np.full(len(values), np.nan), where=n > 0)
    return means


def drops(steps: ArrayLike, lrs: ArrayLike) -> Floats:
    """Steps at which the learning rate falls by more than a third at once. A smooth schedule has no such step."""
    steps, lrs = floats(steps), floats(lrs)
    fallen: Floats = steps[1:][lrs[1:] < lrs[:-1] * 2 / 3]
    return fallen


def spread(edges: ArrayLike, counts: ArrayLike) -> float:
    """Standard deviation about 0 of a histogram, from the centers of its bins; 0 without counts."""
    edges, counts = floats(edges), floats(counts)
    total = counts.sum()
    return float(np.sqrt((counts * ((edges[:-1] + edges[1:]) / 2) ** 2).sum() / total)) if total else 0.0


def thin(steps: ArrayLike, values: ArrayLike, most: int = 500) -> tuple[Floats, Floats]:
    """At most about `most` points for a line: the first hundred, then evenly spaced ones, and always the last one."""
    steps, values = floats(steps), floats(values)
    if len(steps) <= most:
        return steps, values
    chosen = np.unique(np.r_[0:100, np.linspace(100, len(steps) - 1, most - 100).round().astype(int)])
    return steps[chosen], values[chosen]


def limits(*arrays: ArrayLike, margin: float = 0.06) -> tuple[float, float] | None:
    """The smallest and the largest finite number, with a margin; None if no number is finite."""
    numbers = np.concatenate([np.ravel(floats(array)) for array in arrays]) if arrays else np.empty(0)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return None
    low, high = float(numbers.min()), float(numbers.max())
    pad = (high - low) * margin or abs(high) * margin or 1.0
    return low - pad, high + pad


def principal_components(points: ArrayLike) -> tuple[Floats, Floats]:
    """The first two principal components (n, 2) of points (n, d), and their shares of the variance.

    The sign is fixed: in each component the coordinate farthest from 0 is positive.
    """
    points = floats(points)
    centered = points - points.mean(0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    scores, variance = u * s, s**2
    if scores.shape[1] < 2:
        scores, variance = np.pad(scores, ((0, 0), (0, 1))), np.pad(variance, (0, 1))
    scores = scores[:, :2]
    farthest = scores[np.abs(scores).argmax(0), [0, 1]]
    return scores * np.where(farthest < 0, -1.0, 1.0), variance[:2] / max(variance.sum(), 1e-300)
