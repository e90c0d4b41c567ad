"""Whether a fault hurts: an exact permutation test."""

import itertools
import math
from collections.abc import Sequence

LEVEL = 0.05
WORST = 1e30
"""For a loss that is not finite."""


def permutation_p(worse: Sequence[float], better: Sequence[float]) -> float:
    """One-sided p-value, on sums of ranks, that `worse` is no worse than `better`; ties share their ranks."""
    values = [each if math.isfinite(each) else WORST for each in (*worse, *better)]
    ranks = [sum(other < each for other in values) + sum(other == each for other in values) / 2 for each in values]
    seen = sum(ranks[: len(worse)])
    sums = [sum(chosen) for chosen in itertools.combinations(ranks, len(worse))]
    return sum(each >= seen - 1e-9 for each in sums) / len(sums)
