"""Rules for the outcome: whether losses are finite, and whether they fall on training and on validation data."""

import math
from collections.abc import Iterator

import numpy as np

from makemore_pl.doctor.evidence import Abstain, Evidence, Floats, Series
from makemore_pl.doctor.finding import Finding
from makemore_pl.doctor.rule import rule

WIDER, MOVED = 1.5, 0.5
"""Inputs of validation: factor between standard deviations, and distance of means in standard deviations."""
WARM = 20
"""Steps after which BatchNorm's running statistics can be used, with momentum 0.1."""
ALMOST = 0.85
"""Share of a constant guess's loss above which the median loss may be that of a constant guess."""
ENOUGH = 100
"""Steps after which the loss of a network that learns has fallen."""
FEW = 200
"""Examples that may be too few to learn anything from that holds for others."""


@rule(
    "not_finite",
    "outcome",
    "A number is not finite",
    needs=("not_finite/gradients or the training loss",),
    bound="one NaN or infinity in a loss or a gradient",
    source="nothing can be learned from it",
    explains=("diverged", "no_learning", "loss_spike", "dead_units"),
    remedy="Look at the first step where it happens: log or division of 0, exp of a large number, a learning rate that "
    "is too high. torch.autograd.set_detect_anomaly(True) names the function.",
    picture="train/loss, grad_norm",
)
def not_finite(evidence: Evidence) -> Iterator[Finding]:
    tags = [tag for tag in ("train/loss", "not_finite/gradients") if tag in evidence.series]
    if not tags:
        raise Abstain("neither loss nor gradients were seen")
    for tag in tags:
        for step in sorted(evidence.series[tag]):
            value = evidence.series[tag][step]
            bad = value is None or not math.isfinite(value)
            if bad if tag == "train/loss" else bool(bad or value):
                what = "The loss is" if tag == "train/loss" else f"{int(value or 0):,} numbers of the gradients are"
                yield Finding(
                    "not_finite", "critical", tag, step, None, None, "", f"{what} not finite at step {step:,}."
                )
                return


@rule(
    "diverged",
    "outcome",
    "The loss went up",
    needs=("the training loss",),
    bound="late in the run above 1.5 times its start; a loss that can be negative, above its start by half of what it "
    "had fallen",
    source="a training is there to lower it",
    explains=("no_learning", "loss_spike", "train_val_mismatch"),
    remedy="Lower the learning rate; look at what else was found.",
    picture="train/loss",
)
def diverged(evidence: Evidence) -> Iterator[Finding]:
    if evidence.facts.losses > 1:
        raise Abstain("several losses work against or beside each other")
    losses = evidence.losses()
    start, late, bound = evidence.beginning(), losses.late, evidence.far()
    if late > bound and len(losses.values) >= 3:
        yield Finding(
            "diverged", "critical", "train/loss", evidence.last_step, late, bound, "",
            f"The loss ends at {late:.3g}, and began at {start:.3g}.",
        )  # fmt: skip


@rule(
    "loss_spike",
    "outcome",
    "The loss jumped",
    needs=("the training loss of many steps",),
    bound="after the start, a loss above its first one and above 3 times the highest of the ten before; of losses of "
    "single steps the median of five in a row",
    source="Lightning's SpikeDetection: window 10 and a factor; 3, the first loss and the median, which one hard "
    "minibatch does not move, are ours",
    remedy="Clip the gradient's norm, warm the learning rate up, or lower it.",
    picture="train/loss",
)
def loss_spike(evidence: Evidence) -> Iterator[Finding]:
    if evidence.facts.losses > 1:
        raise Abstain("several losses work against or beside each other")
    losses = evidence.losses()
    values, start = losses.values, evidence.beginning()
    if len(values) < 12:
        raise Abstain("fewer than 12 losses were seen")
    steady = evidence.steady_losses()
    width = len(values) - len(steady) + 1
    for place in range(10, len(steady)):
        before = float(np.max(values[place - 10 : place], initial=0.0, where=np.isfinite(values[place - 10 : place])))
        if before > 0 and steady[place] > 3 * before and steady[place] > start:
            step = int(losses.steps[place + width // 2])
            yield Finding(
                "loss_spike", "warning", "train/loss", step, float(steady[place]), 3 * before, "",
                f"At step {step:,} the loss jumps from {before:.3g} to {steady[place]:.3g}.",
            )  # fmt: skip
            return


@rule(
    "train_val_mismatch",
    "outcome",
    "Validation differs from training from the start",
    needs=("a validation within the first pass over the data", "the training loss"),
    bound="no validation loss within 10 % and three standard errors of what training had reached in its first pass, "
    "before the first validation, nor within 10 % of what training was at then; or a validation loss above those 10 % "
    "on inputs whose standard deviation is 1.5 times that of training or less than two thirds of it, or whose mean is "
    "half a standard deviation off",
    source="in the first pass every training example is new, so its loss is what validation should show; 10 % is ours",
    explains=("overfitting", "no_learning"),
    remedy="Compare what training_step and validation_step do to a batch: scaling, order of channels, tokens, mode.",
    picture="train/loss and val/loss",
)
def train_val_mismatch(evidence: Evidence) -> Iterator[Finding]:
    val, losses = validated(evidence)
    if (shift := _shifted(evidence)) and float(val.values[-1]) > losses.late + 0.1 * abs(losses.late):
        value, bound, words = shift
        yield Finding(
            "train_val_mismatch", "warning", "input", int(val.steps[0]), value, bound, "",
            f"What the first layer gets in validation is another thing than in training: {words}.",
        )  # fmt: skip
        return
    comparable(evidence)
    if evidence.facts.validated_within:
        raise Abstain("the first validation came after more than one pass over the training data")
    before = losses.values[losses.steps <= val.steps[0]]
    if len(before) < 3 or val.steps[0] < WARM:
        raise Abstain(f"fewer than {WARM} steps were taken before the first validation")
    # means: of losses that a rare hard example dominates, the median is no measure of what validation averages
    recent = before[-max(3, len(before) // 3) :]
    train, error = float(np.mean(recent)), float(np.std(recent, ddof=1)) / math.sqrt(len(recent))
    best, bound = float(np.nanmin(val.values)), train + 0.1 * abs(train) + 3 * error
    apart = all(value > then + 0.1 * abs(then) for value, then in zip(val.values, _at(losses, val), strict=True))
    if best > bound and val.values[0] > bound and apart and losses.late < losses.values[0]:
        yield Finding(
            "train_val_mismatch", "warning", "val/loss", int(val.steps[0]), best, bound, "",
            f"At the first validation, step {val.steps[0]:,}, the loss on new training examples was {train:.3g}. On "
            f"validation examples it was {val.values[0]:.3g} then, and {best:.3g} at best.",
        )  # fmt: skip


def _shifted(evidence: Evidence) -> tuple[float, float, str] | None:
    """Value, bound and words where inputs are scaled or shifted in validation. A few examples say nothing."""
    train, val = evidence.facts.inputs, evidence.facts.inputs_validated
    if train is None or val is None or train.std == 0 or (evidence.facts.batch_size or 0) < 8:
        return None
    factor, shift = val.std / train.std, abs(val.mean - train.mean) / train.std
    if not 1 / WIDER < factor < WIDER:
        return factor, WIDER, f"standard deviation {val.std:.3g}, in training {train.std:.3g}"
    if shift > MOVED:
        return shift, MOVED, f"mean {val.mean:.3g}, in training {train.mean:.3g}, standard deviation {train.std:.3g}"
    return None


def _at(losses: Series, val: Series) -> list[float]:
    """Mean training loss of the steps before each validation, back to half of the way to its start."""
    return [float(np.mean(losses.values[(losses.steps <= s) & (losses.steps >= s / 2)])) for s in val.steps]


@rule(
    "no_learning",
    "outcome",
    "Nothing is learned from the inputs",
    needs=("the training loss of 100 steps", "the loss of a constant guess"),
    bound="after 100 steps the loss is not 2 % below that of a constant guess (where no validation is better than the "
    "first, not two standard errors) and no longer falls, or no validation loss is below it and they no longer fall, "
    "of 200 training examples or more; not where the validation loss has fallen by 2 % to 5 % below it",
    source="Karpathy's input-independent baseline; the constant guess is counted from the targets seen",
    remedy="Look at inputs and targets side by side, as the network gets them; try to overfit one minibatch: "
    "Trainer(overfit_batches=1).",
    picture="train/loss beside baseline/unigram",
)
def no_learning(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    if facts.losses > 1:
        raise Abstain("several losses work against or beside each other")
    if facts.targets_vary is False:
        raise Abstain("all targets are the same")
    guess, scale = facts.constant_guess, facts.loss_scale
    losses = evidence.losses()
    if guess is None or scale is None:
        raise Abstain("the loss of a constant guess is not known for this loss")
    if evidence.last_step < ENOUGH:
        raise Abstain(f"fewer than {ENOUGH} steps were taken")
    third = max(len(losses.values) // 3, 1)
    last = losses.values[-third:] / scale
    late = losses.late / scale
    if not math.isfinite(late):
        raise Abstain("no late loss is finite")
    # where minibatches differ much, the median is no measure of what a constant guess costs on average
    late = float(np.nanmean(last)) if late > ALMOST * guess else late
    noise = 2 * float(np.nanstd(last)) / math.sqrt(third)
    bound = guess - max(0.02 * abs(guess), min(noise, 0.06 * abs(guess)) if _stands(evidence) else 0)
    if late >= bound and _falls(losses.values / scale, abs(guess)):
        raise Abstain("the loss is still falling towards that of a constant guess")
    val = evidence.get("val/loss")
    before = np.inf if val is None else np.nanmin(val.values[:-1], initial=np.inf)
    stands = val is not None and len(val.values) > 2 and val.values[-1] > before
    if val is not None and val.values[-1] < guess - 0.05 * abs(guess) and val.values[0] - val.values[-1] > 0.02 * guess:
        return  # dropout and other noise of training can hide what is learned
    if not late < bound:
        yield Finding(
            "no_learning", "critical", "train/loss", evidence.last_step, late, bound, "",
            f"The loss is at {late:.3g}, where a guess that does not look at the input gets {guess:.3g}.",
        )  # fmt: skip
    elif (
        stands and not _few(evidence) and val is not None and float(np.nanmin(val.values)) >= guess - 0.01 * abs(guess)
    ):
        best, bound = float(np.nanmin(val.values)), guess - 0.01 * abs(guess)
        yield Finding(
            "no_learning", "critical", "val/loss", evidence.last_step, best, bound, "",
            f"The training examples are learned by heart (loss {late:.3g}), but on validation examples it never got "
            f"better than {best:.3g}, and a guess that does not look at the input gets {guess:.3g}: the targets do not "
            "depend on the inputs, or there are too few examples to learn how.",
        )  # fmt: skip


def _few(evidence: Evidence) -> bool:
    return evidence.facts.examples is not None and evidence.facts.examples < FEW


def _falls(losses: Floats, guess: float) -> bool:
    """Whether they fall from third to third, after the first tenth: by 2 % of the guess in all, and by 0.5 % in the
    end.
    """
    third = max(len(losses) // 3, 1)
    first, middle, last = (
        float(np.nanmean(each))
        for each in (losses[len(losses) // 10 : third + 1], losses[third : 2 * third + 1], losses[-third:])
    )
    return first - last > 0.02 * guess and middle - last > 0.005 * guess


def _stands(evidence: Evidence) -> bool:
    """Whether no validation is better than the first one, by 1 %."""
    val = evidence.get("val/loss")
    return val is not None and len(val.values) > 2 and float(np.nanmin(val.values)) > 0.99 * val.values[0] > 0


@rule(
    "overfitting",
    "outcome",
    "Overfitting",
    needs=("validation losses", "the training loss"),
    bound="the last two validation losses are 5 % above the lowest and 2 % of where the loss began, while the "
    "training loss is lower than then; or, of fewer than 200 training examples, a training loss below a tenth of the "
    "lowest validation loss, which is not below that of a constant guess",
    source="early stopping's own criterion; 5 % and 2 % are ours",
    remedy="Stop at the lowest validation loss (EarlyStopping), or more data, dropout, weight decay, fewer parameters.",
    picture="train/loss and val/loss",
)
def overfitting(evidence: Evidence) -> Iterator[Finding]:
    val, losses = validated(evidence)
    if len(val.values) < 3:
        raise Abstain("fewer than 3 validations")
    lowest = int(np.nanargmin(val.values))
    best, last = float(val.values[lowest]), float(np.min(val.values[-2:]))
    bound = best + max(0.05 * abs(best), 0.02 * abs(evidence.beginning()))
    then = np.interp(val.steps[lowest], losses.steps, losses.values)
    if last > bound and losses.late < then:
        yield Finding(
            "overfitting", "warning", "val/loss", int(val.steps[lowest]), last, bound, "",
            f"The validation loss was lowest at step {val.steps[lowest]:,} with {best:.3g} and ends at {last:.3g}, "
            f"while the training loss fell on to {losses.late:.3g}.",
        )  # fmt: skip
        return
    guess = evidence.guess()
    if _few(evidence) and guess is not None and best >= guess > 0 and losses.late < 0.1 * best:
        yield Finding(
            "overfitting", "warning", "val/loss", evidence.last_step, losses.late, 0.1 * best, "",
            f"The {evidence.facts.examples} training examples are learned by heart (loss {losses.late:.3g}), but on "
            f"validation examples the loss never got better than {best:.3g}, and a guess that does not look at the "
            f"input gets {guess:.3g}.",
        )  # fmt: skip


def comparable(evidence: Evidence) -> None:
    """Abstains where validation is not known to count what training does."""
    scale = evidence.facts.loss_scale
    if scale is None or abs(scale - 1) > 0.01:
        raise Abstain("the training loss is not known to be the bare mean that validation shows")


def validated(evidence: Evidence) -> tuple[Series, Series]:
    """Losses of validation and of training; abstains without any of validation."""
    val = evidence.get("val/loss")
    if val is None or not np.isfinite(val.values).any():
        raise Abstain("there was no validation loss")
    return val, evidence.losses()
