"""Decides whether a change helped, by a paired test over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.05
WORST = 1e3
"""Losses that are higher or not finite are counted as this many nats."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Losses of the same seeds, before and after a change."""

    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def improvement(self) -> float:
        """Mean of before - after, in nats."""
        differences = self._differences()
        return sum(differences) / len(differences)

    @property
    def p_better(self) -> float:
        """One-sided p-value of the paired t-test that the change lowers the loss."""
        return _paired_p(self._differences())

    @property
    def verdict(self) -> str:
        """verified, refuted or no difference, at the 5 % level."""
        if self.p_better < LEVEL:
            return "verified"
        return "refuted" if _paired_p([-each for each in self._differences()]) < LEVEL else "no difference"

    def _differences(self) -> list[float]:
        return [_bounded(one) - _bounded(two) for one, two in zip(self.before, self.after, strict=True)]


def compare(before: Sequence[float], after: Sequence[float]) -> Comparison:
    """Raises ValueError for fewer than 3 seeds, which prove nothing."""
    if len(before) < 3:
        raise ValueError(f"a paired test needs at least 3 seeds, got {len(before)}.")
    return Comparison(tuple(before), tuple(after))


def _bounded(loss: float) -> float:
    return min(loss, WORST) if math.isfinite(loss) else WORST


def _paired_p(differences: list[float]) -> float:
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((each - mean) ** 2 for each in differences) / (n - 1)
    if variance == 0:
        return 0.0 if mean > 0 else 1.0
    return student_tail(mean / math.sqrt(variance / n), n - 1)


def student_tail(t: float, degrees: int) -> float:
    """P(T > t) of Student's t with a whole number of degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(theta)
    term, total = (cosine, 0.0) if degrees % 2 else (1.0, 0.0)
    for k in range(degrees // 2):
        total += term
        term *= cosine**2 * (2 * k + 2) / (2 * k + 3) if degrees % 2 else cosine**2 * (2 * k + 1) / (2 * k + 2)
    central = 2 / math.pi * (theta + math.sin(theta) * total) if degrees % 2 else math.sin(theta) * total
    return (1 - central) / 2
