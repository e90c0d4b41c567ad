"""Rules for the steps: they are too large, too small, leave out parameters, or are cut by clipping."""

import math
from collections.abc import Iterator

import numpy as np

from makemore_pl.doctor.evidence import Abstain, Evidence, NotApplicable, Series, median
from makemore_pl.doctor.finding import Finding, listed
from makemore_pl.doctor.rule import rule
from makemore_pl.doctor.update_ratios import (
    EARLY,
    SETTLED,
    first_steps,
    last_step_before,
    livelier_ratios,
    ratios_at_full_rate,
    smallest_first_step,
)

BAND = LOW, HIGH = -3.5, -1.0
"""log10 of update over data that a median matrix is healthy in."""
SLOW, SLOW_ADAPTIVE = -3.4, -3.15
"""The same in hidden layers, for a run that is short for such steps: of optimizers that divide by the gradient's size,
whose steps are as large in all layers, and of others. Our networks learn all they can at -3.3 and above with SGD, at
-2.8 and above with Adam."""
STILL, STEEP = -3.1, -2.75
"""The same in hidden layers where the loss still falls by 5 % in the last third; and, of optimizers that divide by the
gradient's size, where it falls by 15 %."""
PATH, SHORT = 2.0, 200
"""Steps at full rate times update over data, below which a run is short, and steps from which on that is said."""
WILD, LEAP, DEADLY, REPLACED = -0.4, -0.8, -1.3, -0.1
"""log10 of update over data that no network takes unharmed: in the largest of its first steps, in the median matrix
throughout the run, in the largest of its first steps where a layer has died, and in the first step of every hidden
matrix, of which nothing is left then."""
SUMMED = 4
"""Times the mean, from which on a loss is called a sum."""


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
    otherwise = "the optimizers were not seen"
    if left_out := evidence.known(facts.not_optimized, "not_optimized", otherwise):
        yield Finding(
            "frozen_parameters", "warning", ", ".join(left_out), 0, float(len(left_out)), 0.0, "",
            f"No optimizer has {listed(left_out)}, though they require a gradient and get one.",
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
    bound="a loss that rises before it is not finite, ends at 1.5 times its start, is as high three times after the "
    "first 20 steps (in the second half of the run, where the network learns in the end), or ends no lower than it "
    "began with log10 of update over data above -1 in the median matrix at full rate; one that is not finite after a "
    "step above -1; one that rises by a quarter, is not finite or stays that of a constant guess after one of the "
    "first steps was above -0.4 (-1.3 where a layer has died since); or one above half of its start with steps above "
    "-0.8 throughout, or early ones above -0.1 in all hidden matrices",
    source="TheDeepChecker's -1; our networks train at -1.9 to -3, and with BatchNorm also at -1.2",
    explains=("diverged", "not_finite", "loss_spike", "dead_units", "no_learning", "clipping", "update_too_small",
              "batchnorm_lag", "vanishing_gradients", "batchnorm_noise",
              "train_val_mismatch", "no_gradient"),
    remedy="Divide the learning rate by ten to the power of what is too much; add a warm-up.",
    picture="update_data_ratio, above -1",
)  # fmt: skip
def update_too_large(evidence: Evidence) -> Iterator[Finding]:
    ratios = ratios_at_full_rate(evidence)
    ratio, first = median(ratios.values()), first_steps(evidence)
    losses = evidence.losses()
    start, worst = evidence.beginning(), float(np.nanmax(losses.values, initial=-math.inf))
    far = evidence.far()
    if not math.isfinite(start) or not _hurt(evidence, start, far, ratio, first):
        return
    if not ratio > HIGH and first > WILD:
        ratio = first
    facts = evidence.facts
    why, scale = "", facts.loss_scale or 1
    if scale > SUMMED:
        why = f" The loss is {scale:.3g} times the mean of its terms: with reduction='mean' steps are smaller by that."
    worst_name = max(ratios, key=lambda name: ratios[name] if math.isfinite(ratios[name]) else -math.inf)
    step = int(losses.steps[int(np.nanargmax(losses.values))]) if np.isfinite(losses.values).any() else 0
    if not np.isfinite(losses.values).all():
        went = "is not finite"
    else:
        went = (
            f"went from {start:.3g} to {worst:.3g}"
            if worst > start
            else f"only fell from {start:.3g} to {losses.late:.3g}"
        )
    if ratio > HIGH:
        yield Finding(
            "update_too_large", "critical", worst_name, step, ratio, HIGH, "",
            f"A step changes a typical weight by {_of_its_size(ratio)}, and the loss {went}: the learning rate "
            f"is too high.{why}",
        )  # fmt: skip
    else:
        yield Finding(
            "update_too_large", "critical", "train/loss", step, worst, far, "",
            f"The loss {went}: the learning rate is too high.{why}",
        )  # fmt: skip


def _path(evidence: Evidence, ratio: float) -> float:
    """How far all steps at full rate, taken in one direction, could move a weight, in units of its size."""
    lr = evidence.get("lr")
    steps = evidence.last_step + 1
    share = float(np.mean(evidence.full_rate(lr))) if lr is not None else 1.0
    return float(steps * share * 10**ratio)


def _hurt(evidence: Evidence, start: float, bound: float, ratio: float, first: float) -> bool:
    """Whether steps of this size have harmed: not finite, no better than the start, or often far above it."""
    losses, steady = evidence.losses(), evidence.steady_losses()
    late, far = losses.late, steady > bound + 0.5
    if not np.isfinite(losses.values).all():  # out of a clear sky it is another fault, as log(0)
        return bool(far.any()) or ratio > HIGH or last_step_before(evidence) > HIGH or first > WILD
    if evidence.facts.losses > 1:  # one of two losses that work against each other may rise
        return ratio > HIGH
    if evidence.last_step < EARLY:  # the first steps may overshoot, and be recovered from
        return late > bound and (ratio > HIGH or first > WILD)
    if late > bound or (late >= start and ratio > HIGH):
        return True
    if start > 0 and first > WILD and np.nanmax(losses.values[losses.steps < EARLY]) > 1.25 * start:
        return True
    learned = start > 0 and late < 0.5 * start
    since = evidence.last_step / 2 if learned else EARLY
    at = losses.steps[(len(losses.steps) - len(steady)) // 2 :][: len(steady)]
    if np.sum(far & (at >= since)) >= (1 if late >= start else 3):
        return True
    guess = evidence.guess()
    nothing = late > 0.95 * (start if guess is None else guess)
    if start > 0 and not learned and smallest_first_step(evidence) > REPLACED:
        return True
    return (nothing and first > (DEADLY if _died(evidence) else WILD)) or (ratio > LEAP and not learned)


def _died(evidence: Evidence) -> bool:
    """Whether a layer has died during the run."""
    layers = (*evidence.of("stuck_units").values(), *evidence.of("dead_units").values())
    return any(each.start < 0.5 and each.late > 0.9 for each in layers)


def _of_its_size(ratio: float) -> str:
    return f"{10**ratio:.2g} times its size" if ratio > 0 else f"{100 * 10**ratio:.2g} % of its size"


@rule(
    "update_too_small",
    "updates",
    "Steps are too small",
    needs=("update_data_ratio/<parameter>",),
    bound="log10 of update over data below -3.5 in the median hidden matrix at full rate, in the third of the run "
    "where it is highest, and a loss above half of a constant guess's; where the loss still falls and all steps in one "
    "direction could change a weight by no more than twice its size, also below -3.4 (-3.15 for Adam and its like, and "
    "-3.1 where it falls by 5 % in the last third, -2.75 for those where it falls by 15 %), or below -3.5 in the last "
    "layer",
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
    guess, losses = evidence.guess(), evidence.losses()
    hidden, output = livelier_ratios(evidence)
    optimizers = evidence.facts.optimizers or ()
    adaptive = bool(optimizers) and all(each.adaptive for each in optimizers)
    slow = SLOW_ADAPTIVE if adaptive else SLOW
    learned = losses.late / guess if guess else 1.0
    if adaptive and hidden < STEEP and learned > 0.25 and _falls(losses, 0.15) and _is_short(evidence, hidden, 0.6):
        ratio, bound = hidden, STEEP
    elif learned < 0.5:
        return  # it has learned a lot
    elif hidden < LOW:
        ratio, bound = hidden, LOW
    elif _falls(losses, 0.05) and hidden < STILL and _is_short(evidence, hidden):
        ratio, bound = hidden, STILL
    elif _falls(losses) and hidden < slow and _is_short(evidence, hidden):
        ratio, bound = hidden, slow
    elif _falls(losses) and output < LOW and _is_short(evidence, output) and not _confident(evidence):
        ratio, bound = output, LOW
    else:
        return
    if math.isfinite(ratio):
        ratios = ratios_at_full_rate(evidence)
        lowest = min(ratios, key=lambda name: ratios[name] if math.isfinite(ratios[name]) else math.inf)
        yield Finding(
            "update_too_small", "warning", lowest, evidence.last_step, ratio, bound, "",
            f"A step changes a typical weight by {_of_its_size(ratio)}: at this rate it takes "
            f"{10**-ratio:,.0f} steps in one direction to double it. The learning rate is too low"
            + (f" for {evidence.last_step + 1:,} steps." if ratio >= LOW else "."),
        )  # fmt: skip


def _confident(evidence: Evidence) -> bool:
    """Whether the first loss is far above a constant guess's: then the last layer's weights are too large, and steps
    only look small beside them.
    """
    guess, first = evidence.guess(), evidence.losses().values[0]
    return bool(guess is not None and first > guess + 1)


def _is_short(evidence: Evidence, ratio: float, path: float = PATH) -> bool:
    """Whether the run is over and steps of this size could not carry it far."""
    return evidence.final and evidence.last_step >= SHORT and _path(evidence, ratio) < path


def _falls(losses: Series, share: float = 0.01) -> bool:
    """Whether the loss was still falling in the end, by this share from the middle third to the last."""
    third = len(losses.values) // 3
    return median(losses.values[third : 2 * third]) - losses.late > share * abs(losses.late)


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
        if evidence.facts.clip_value == 0:
            raise NotApplicable("nothing clips gradients")
        raise Abstain("the gradient's norm was not measured before and after clipping")
    both = np.intersect1d(before.steps, after.steps)
    late = both[-max(3, len(both) // 2) :]
    if len(late) < 3:
        raise Abstain("fewer than 3 watched steps")
    kept = np.array([after.values[after.steps == s][0] / max(before.values[before.steps == s][0], 1e-30) for s in late])
    share = float(np.mean(kept < 0.5))
    if share > 0.5:
        optimizers = evidence.facts.optimizers or ()
        adaptive = optimizers and all(each.adaptive for each in optimizers)
        yield Finding(
            "clipping", "info" if adaptive else "warning", "gradients", evidence.last_step, share, 0.5, "",
            f"{share:.0%} of the late steps are clipped to less than half of their length, in the median to "
            f"{median(kept):.0%}: in effect the learning rate is that much lower.",
        )  # fmt: skip
