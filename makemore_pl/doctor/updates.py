"""The steps that are taken: too large, too small, without some parameters, or cut by clipping."""

import math
from collections.abc import Iterator

import numpy as np

from makemore_pl.doctor.evidence import Abstain, Evidence, Series, median
from makemore_pl.doctor.finding import Finding, listed
from makemore_pl.doctor.rule import rule

BAND = LOW, HIGH = -3.5, -1.0
"""log10 of update over data that a median matrix is healthy in."""
PATH = 0.3
"""Steps at full rate times update over data, below which a network can't have got far from where it began."""
SLOW, SHORT = -3.3, 200
"""Ratio below which the path is looked at, and steps from which on."""
SETTLED = 10
"""Steps that a network that starts with small weights takes large steps relative to them."""


def typical_ratio(evidence: Evidence) -> float:
    """log10 of update over data: over the matrices, the median of their medians at full rate; nan where none is."""
    return median(_at_full_rate(evidence).values())


def livelier_ratio(evidence: Evidence) -> float:
    """The same for that third of the run in which it is highest: a network that has learned all it can stands still."""
    thirds = (median(_at_full_rate(evidence, third).values()) for third in range(3))
    return max((each for each in thirds if math.isfinite(each)), default=math.nan)


def _at_full_rate(evidence: Evidence, third: int | None = None) -> dict[str, float]:
    facts = evidence.facts
    measured = evidence.need("update_data_ratio")
    chosen = {name: each for name, each in measured.items() if name not in facts.vocabulary} or measured
    found = {}
    for name, each in chosen.items():
        at = evidence.full_rate(each)
        at = late if (late := at & (each.steps >= SETTLED)).any() else at
        values = each.values[at]
        found[name] = median(values if third is None else np.array_split(values, 3)[third])
    return found


@rule(
    "frozen_parameters",
    "updates",
    "Parameters that no optimizer has",
    needs=("the optimizers",),
    bound="a parameter that requires a gradient, gets one, and is in no optimizer; with requires_grad=False only info",
    source="a parameter without optimizer is not trained",
    explains=("no_learning", "update_too_small"),
    remedy="Pass all of them: torch.optim.SGD(self.parameters(), ...). What is frozen on purpose: "
    "parameter.requires_grad_(False).",
    picture="update_data_ratio, where they are missing",
)
def frozen_parameters(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    if reason := facts.unknown.get("frozen_parameters"):
        raise Abstain(reason)
    if facts.not_optimized:
        yield Finding(
            "frozen_parameters", "warning", ", ".join(facts.not_optimized), 0, float(len(facts.not_optimized)), 0.0, "",
            f"No optimizer has {listed(facts.not_optimized)}, though they require a gradient and get one.",
        )  # fmt: skip
    elif facts.frozen:
        yield Finding(
            "frozen_parameters", "info", ", ".join(facts.frozen), 0, float(len(facts.frozen)), 0.0, "",
            f"{listed(facts.frozen)} are frozen (requires_grad=False).",
        )  # fmt: skip


@rule(
    "update_too_large",
    "updates",
    "Steps are too large",
    needs=("update_data_ratio/<parameter>", "the training loss"),
    bound="a loss that rises before it is not finite, ends at 1.5 times its start, is as high three times, or ends no "
    "lower than it began with log10 of update over data above -1 in the median matrix at full rate",
    source="TheDeepChecker's -1; our networks train at -1.9 to -3, and with BatchNorm also at -1.2",
    explains=("diverged", "not_finite", "loss_spike", "dead_units", "no_learning", "clipping",
              "batchnorm_lag", "vanishing_gradients", "batchnorm_noise",
              "train_val_mismatch"),
    remedy="Divide the learning rate by ten to the power of what is too much; add a warm-up.",
    picture="update_data_ratio, above -1",
)  # fmt: skip
def update_too_large(evidence: Evidence) -> Iterator[Finding]:
    ratios = _at_full_rate(evidence)
    ratio = median(ratios.values())
    losses = evidence.losses()
    start, worst = evidence.beginning(), float(np.nanmax(losses.values, initial=-math.inf))
    if not math.isfinite(start) or not _hurt(losses, start, ratio, several=evidence.facts.losses > 1):
        return
    facts = evidence.facts
    why = ""
    if facts.loss_is_sum and (facts.examples_in_loss or 1) > 1:
        why = f" The loss adds up its {facts.examples_in_loss} examples: with the mean (reduction='mean') steps are "
        why += "smaller by that factor."
    worst_name = max(ratios, key=lambda name: ratios[name] if math.isfinite(ratios[name]) else -math.inf)
    step = int(losses.steps[int(np.nanargmax(losses.values))]) if np.isfinite(losses.values).any() else 0
    went = f"went from {start:.3g} to {worst:.3g}" if worst > start else "is not finite"
    if ratio > HIGH:
        yield Finding(
            "update_too_large", "critical", worst_name, step, ratio, HIGH, "",
            f"A step changes a typical weight by {_percent(ratio)} of its size, and the loss {went}: the learning rate "
            f"is too high.{why}",
        )  # fmt: skip
    else:
        yield Finding(
            "update_too_large", "critical", "train/loss", step, worst, 1.5 * abs(start), "",
            f"The loss {went}: the learning rate is too high.{why}",
        )  # fmt: skip


def _path(evidence: Evidence, ratio: float) -> float:
    """How far steps at full rate could carry a weight, in units of its size."""
    lr = evidence.get("lr")
    steps = evidence.last_step + 1
    share = float(np.mean(evidence.full_rate(lr))) if lr is not None else 1.0
    return float(steps * share * 10**ratio)


def _hurt(losses: Series, start: float, ratio: float, several: bool) -> bool:
    """Whether steps of this size have harmed: not finite, no better than the start, or often far above it."""
    late = losses.late
    far = losses.steady > 1.5 * abs(start) + 0.5
    if not np.isfinite(losses.values).all():  # out of a clear sky it is another fault, as log(0)
        return bool(far.any()) or ratio > HIGH
    if several:  # of two losses that work against each other one may rise
        return ratio > HIGH
    return bool(late > 1.5 * abs(start) or far.sum() >= 3 or (late >= start and (ratio > HIGH or far.any())))


def _percent(ratio: float) -> str:
    return f"{10**ratio:.2g} times" if ratio > 0 else f"{100 * 10**ratio:.2g} %"


@rule(
    "update_too_small",
    "updates",
    "Steps are too small",
    needs=("update_data_ratio/<parameter>",),
    bound="log10 of update over data below -3.5 in the median matrix at full rate, in the third of the run where it is "
    "highest, and a loss above half of a constant guess's; or below -3.3 where all steps in one "
    "direction could not change a weight by 30 % of its size",
    source="our networks train at -1.6 to -3.1; TheDeepChecker has -4",
    explains=("no_learning",),
    remedy="Multiply the learning rate by ten to the power of what is missing.",
    picture="update_data_ratio, below -3.5",
)
def update_too_small(evidence: Evidence) -> Iterator[Finding]:
    if evidence.last_step < SETTLED:
        raise Abstain(f"fewer than {SETTLED} steps were taken")
    if evidence.facts.pretrained:
        raise Abstain("the first loss is that of a trained network, which small steps suit")
    ratios = _at_full_rate(evidence)
    ratio = livelier_ratio(evidence)
    guess = evidence.facts.constant_guess
    if guess and evidence.losses().late < 0.5 * guess:
        return  # it has learned a lot
    short = evidence.final and evidence.last_step >= SHORT and ratio < SLOW and _path(evidence, ratio) < PATH
    if ratio < LOW or short:
        lowest = min(ratios, key=lambda name: ratios[name] if math.isfinite(ratios[name]) else math.inf)
        yield Finding(
            "update_too_small", "warning", lowest, evidence.last_step, ratio, LOW if ratio < LOW else SLOW, "",
            f"A step changes a typical weight by {_percent(ratio)} of its size: at this rate it takes "
            f"{10**-ratio:,.0f} steps in one direction to double it. The learning rate is too low"
            + (f" for {evidence.last_step + 1:,} steps." if ratio >= LOW else "."),
        )  # fmt: skip


@rule(
    "clipping",
    "updates",
    "Most steps are clipped",
    needs=("grad_norm/before_clipping and grad_norm/after_clipping",),
    bound="late in the run, more than half of the steps clipped to less than half of their length",
    source="Tuning Playbook: clipping more than half of the steps is extremely aggressive, lower the learning rate",
    explains=("no_learning", "update_too_small"),
    remedy="Raise gradient_clip_val to the 90th percentile of the norm, or leave clipping out and lower the learning "
    "rate. With Adam it changes little either way.",
    picture="clipped/share",
)
def clipping(evidence: Evidence) -> Iterator[Finding]:
    before, after = evidence.get("grad_norm/before_clipping"), evidence.get("grad_norm/after_clipping")
    if before is None or after is None:
        if evidence.facts.clip_value is None:
            return
        raise Abstain("the gradient's norm was not measured before and after clipping")
    both = np.intersect1d(before.steps, after.steps)
    late = both[-max(3, len(both) // 2) :]
    if len(late) < 3:
        raise Abstain("fewer than 3 watched steps")
    kept = np.array([after.values[after.steps == s][0] / max(before.values[before.steps == s][0], 1e-30) for s in late])
    share = float(np.mean(kept < 0.5))
    if share > 0.5:
        adaptive = all(each.adaptive for each in evidence.facts.optimizers) and evidence.facts.optimizers
        yield Finding(
            "clipping", "info" if adaptive else "warning", "gradients", evidence.last_step, share, 0.5, "",
            f"{share:.0%} of the late steps are clipped to less than half of their length, in the median to "
            f"{median(kept):.0%}: in effect the learning rate is that much lower.",
        )  # fmt: skip
