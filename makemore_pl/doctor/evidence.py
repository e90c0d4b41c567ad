"""The input of the rules: numbers by tag and step, and facts."""

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


class Abstain(Exception):  # noqa: N818  # it is an answer of a rule and no error
    """Raised by a rule that can't judge; the message says why."""


class NotApplicable(Abstain):
    """There is nothing of the kind that the rule judges: no lack."""


@dataclass(frozen=True, slots=True)
class Series:
    """The numbers of one tag in the order of their steps; nan stands for numbers that are not finite."""

    steps: NDArray[np.int64]
    values: Floats

    @property
    def start(self) -> float:
        """The first number. It is that of step 0, before any update, unless the run was resumed."""
        return float(self.values[0])

    def at(self, steps: NDArray[np.int64]) -> Floats:
        """The numbers of these steps, which are among its own."""
        return self.values[np.searchsorted(self.steps, steps)]

    @property
    def late(self) -> float:
        """Median over the last third, at least 3 values."""
        return median(self.values[-max(3, len(self.values) // 3) :])

    def steady(self, width: int = 5) -> Floats:
        """Medians of so many numbers in a row; the numbers themselves if these are few or not of neighbouring steps."""
        if len(self.values) < 50 or self.steps[-1] - self.steps[0] > 2 * len(self.values):
            return self.values
        return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(self.values, width), axis=1))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Numbers and facts of one run, which may still go on.

    Args:
        series: tag -> step -> number, with the tags of the diagnostics callbacks; None for a number that is not finite.
        final: whether the run has ended.
    """

    series: Mapping[str, Mapping[int, float | None]]
    facts: Facts = field(default_factory=Facts)
    final: bool = True
    _read: dict[str, Series | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Tag -> its numbers, because many rules ask for the same."""

    @property
    def last_step(self) -> int:
        return max((max(each) for each in self.series.values() if each), default=0)

    def get(self, tag: str) -> Series | None:
        if tag not in self._read:
            self._read[tag] = _series(self.series.get(tag))
        return self._read[tag]

    def of(self, quantity: str) -> dict[str, Series]:
        """Layer or parameter -> its numbers of this quantity, in the order of the forward pass."""
        names = [tag.partition("/")[2] for tag in self.series if tag.startswith(f"{quantity}/")]
        known = {name: place for place, name in enumerate((*(self.facts.layers or ()), *self.facts.matrices))}
        names.sort(key=lambda name: (known.get(name, len(known)), _natural(name)))
        found = {name: self.get(f"{quantity}/{name}") for name in names}
        return {name: each for name, each in found.items() if each is not None}

    def need(self, quantity: str) -> dict[str, Series]:
        """The same as `of`; raises Abstain if nothing was measured."""
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
        """Training losses: means over strides if they were logged, else of minibatches; raises Abstain without any. One
        that is not finite may have ended the run before its stride did, so it counts beside the means.
        """
        means, each = self.get("train/loss_mean"), self.get("train/loss")
        if means is None or each is None:
            if (found := means or each) is None:
                raise Abstain("the training loss was not seen")
            return found
        bad = each.steps[(each.steps > means.steps[-1]) & np.isnan(each.values)]
        return Series(np.append(means.steps, bad), np.append(means.values, np.full(len(bad), math.nan)))

    def steady_losses(self) -> Floats:
        """Training losses without the noise of minibatches: medians of five in a row, of more where these are small."""
        return self.losses().steady(min(max(5, 2 * round(40 / max(self.facts.batch_size or 32, 1)) + 1), 25))

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
        """Which steps had at least half of the highest learning rate, and so no warm-up and no decay."""
        lr = self.get("lr")
        if lr is None:
            return np.ones(len(series.steps), bool)
        rates = np.interp(series.steps, lr.steps, lr.values)
        return np.asarray(rates >= 0.5 * np.nanmax(lr.values))


def _series(found: Mapping[int, float | None] | None) -> Series | None:
    if not found:
        return None
    steps = sorted(found)
    values = np.array([found[step] for step in steps], dtype=np.float64)  # None becomes nan
    return Series(np.array(steps), np.where(np.isfinite(values), values, math.nan))


def median(values: Iterable[float] | Floats) -> float:
    """The median of the finite values; nan if there is none."""
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
    array = array[np.isfinite(array)]
    return float(np.median(array)) if len(array) else math.nan


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))
