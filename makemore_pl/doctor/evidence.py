"""What rules look at: numbers by tag and step, and facts."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from makemore_pl.doctor.facts import Facts

Floats = NDArray[np.float64]
T = TypeVar("T")


class Abstain(Exception):  # noqa: N818  # no error: a rule's answer
    """A rule can't judge, and says why."""


class NotApplicable(Abstain):
    """There is nothing of the kind that the rule judges: no lack."""


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers of one tag in order of their steps; what is not finite is nan."""

    steps: NDArray[np.int64]
    values: Floats

    @property
    def start(self) -> float:
        """The first one: forward and backward of step 0 come before any update. Of a resumed run it is a later one."""
        return float(self.values[0])

    @property
    def late(self) -> float:
        """Median over the last third, at least 3 values."""
        return median(self.values[-max(3, len(self.values) // 3) :])

    @property
    def steady(self) -> Floats:
        """Of losses of single minibatches the medians of five in a row; where steps lie apart, the numbers."""
        if len(self.values) < 50 or self.steps[-1] - self.steps[0] > 2 * len(self.values):
            return self.values
        return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(self.values, 5), axis=1))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Numbers and facts of one run, so far or as a whole.

    Args:
        series: tag -> step -> number, with the tags of the diagnostics callbacks; None where it was not finite.
        final: whether the run has ended.
    """

    series: Mapping[str, Mapping[int, float | None]]
    facts: Facts = field(default_factory=Facts)
    final: bool = True

    @property
    def last_step(self) -> int:
        return max((max(each) for each in self.series.values() if each), default=0)

    def get(self, tag: str) -> Series | None:
        found = self.series.get(tag)
        if not found:
            return None
        steps = sorted(found)
        numbers = [found[step] for step in steps]
        finite = [math.nan if value is None or not math.isfinite(value) else value for value in numbers]
        return Series(np.array(steps), np.array(finite, dtype=np.float64))

    def of(self, quantity: str) -> dict[str, Series]:
        """Layer or parameter -> its numbers, in the order of the forward pass."""
        names = [tag.partition("/")[2] for tag in self.series if tag.startswith(f"{quantity}/")]
        known = {name: place for place, name in enumerate((*(self.facts.layers or ()), *self.facts.matrices))}
        names.sort(key=lambda name: (known.get(name, len(known)), _natural(name)))
        found = {name: self.get(f"{quantity}/{name}") for name in names}
        return {name: each for name, each in found.items() if each is not None}

    def need(self, quantity: str) -> dict[str, Series]:
        """The same; abstains where nothing was measured."""
        found = self.of(quantity)
        if not found:
            raise Abstain(f"{quantity} was not measured")
        return found

    def known(self, fact: T | None, name: str, otherwise: str) -> T:
        """The fact of this name; abstains where it is None, with the reason that is noted or another one."""
        if fact is None:
            raise Abstain(self.facts.unknown.get(name, otherwise))
        return fact

    def losses(self) -> Series:
        """Training losses, means over what lies between two of them where there are such; abstains without."""
        found = self.get("train/loss_mean") or self.get("train/loss")
        if found is None:
            raise Abstain("the training loss was not seen")
        return found

    def beginning(self) -> float:
        """The loss to start from: the first one, or what a constant guess costs where one easy minibatch costs less."""
        guess = self.guess()
        return max(float(self.losses().values[0]), -math.inf if guess is None else guess)

    def far(self) -> float:
        """A loss this high is far above the beginning: half as much again, of what it has fallen where it can be
        negative, as the log-likelihood of a density or a critic's score.
        """
        start, lowest = self.beginning(), float(np.nanmin(self.losses().values, initial=math.inf))
        return start + 0.5 * (start - lowest if lowest < 0 else start)

    def guess(self) -> float | None:
        """What a constant guess costs, in the scale of the training loss; None where that is not known."""
        guess, scale = self.facts.constant_guess, self.facts.loss_scale
        return None if guess is None or scale is None else guess * scale

    def full_rate(self, series: Series) -> NDArray[np.bool_]:
        """The steps at which the learning rate was at least half of its highest: no warm-up, no decay."""
        lr = self.get("lr")
        if lr is None:
            return np.ones(len(series.steps), bool)
        rates = np.interp(series.steps, lr.steps, lr.values)
        return np.asarray(rates >= 0.5 * np.nanmax(lr.values))


def median(values: Iterable[float] | Floats) -> float:
    """Of the finite values; nan where there is none."""
    array = np.asarray(list(values), dtype=np.float64)
    array = array[np.isfinite(array)]
    return float(np.median(array)) if len(array) else math.nan


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))
