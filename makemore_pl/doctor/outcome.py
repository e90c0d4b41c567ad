"""Rules for the outcome: whether losses are finite, and whether they fall on training and on validation data."""

import math
from collections.abc import Iterator

import numpy as np

from makemore_pl.doctor.evidence import Abstain, Evidence, median
from makemore_pl.doctor.finding import Finding
from makemore_pl.doctor.rule import rule

DROPOUT, HEAVY, PATIENT = 0.4, 0.75, 1000
"""From a dropout of 0.4 on, the rule compares training and validation loss, after 1,000 steps at the earliest. From
0.75 on, dropout is always too much."""
WARM = 20
"""Steps after which BatchNorm's running statistics can be used, with momentum 0.1."""
ENOUGH = 100
"""Steps after which the loss of a network that learns has fallen."""


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
    bound="late in the run above 1.5 times its start",
    source="a training is there to lower it",
    explains=("no_learning", "loss_spike", "train_val_mismatch"),
    remedy="Lower the learning rate; look at what else was found.",
    picture="train/loss",
)
def diverged(evidence: Evidence) -> Iterator[Finding]:
    if evidence.facts.losses > 1:
        raise Abstain("several losses work against or beside each other")
    losses = evidence.losses()
    start, late = evidence.beginning(), losses.late
    bound = start + 0.5 * abs(start)
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
    bound="after the start, a loss above its first one and above 3 times the highest of the ten before",
    source="Lightning's SpikeDetection: window 10 and a factor; 3 and the first loss are ours",
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
    for place in range(10, len(values)):
        before = float(np.max(values[place - 10 : place], initial=0.0, where=np.isfinite(values[place - 10 : place])))
        if before > 0 and values[place] > 3 * before and values[place] > start:
            yield Finding(
                "loss_spike", "warning", "train/loss", int(losses.steps[place]), float(values[place]), 3 * before, "",
                f"At step {losses.steps[place]:,} the loss jumps from {before:.3g} to {values[place]:.3g}.",
            )  # fmt: skip
            return


@rule(
    "train_val_mismatch",
    "outcome",
    "Validation differs from training from the start",
    needs=("a validation within the first pass over the data", "the training loss"),
    bound="no validation loss within 10 % of what training had reached in its first pass, before the first validation",
    source="in the first pass every training example is new, so its loss is what validation should show; 10 % is ours",
    explains=("overfitting", "no_learning"),
    remedy="Compare what training_step and validation_step do to a batch: scaling, order of channels, tokens, mode.",
    picture="train/loss and val/loss",
)
def train_val_mismatch(evidence: Evidence) -> Iterator[Finding]:
    val, losses = _validated(evidence)
    _comparable(evidence)
    if evidence.facts.validated_within:
        raise Abstain("the first validation came after more than one pass over the training data")
    before = losses.values[losses.steps <= val.steps[0]]
    if len(before) < 3 or val.steps[0] < WARM:
        raise Abstain(f"fewer than {WARM} steps were taken before the first validation")
    train, best = median(before[-max(3, len(before) // 3) :]), float(np.nanmin(val.values))
    bound = train + 0.1 * abs(train)
    if best > bound and val.values[0] > bound and losses.late < losses.values[0]:
        yield Finding(
            "train_val_mismatch", "warning", "val/loss", int(val.steps[0]), best, bound, "",
            f"At the first validation, step {val.steps[0]:,}, the loss on new training examples was {train:.3g}. On "
            f"validation examples it was {val.values[0]:.3g} then, and {best:.3g} at best.",
        )  # fmt: skip


@rule(
    "no_learning",
    "outcome",
    "Nothing is learned from the inputs",
    needs=("the training loss of 100 steps", "the loss of a constant guess"),
    bound="after 100 steps the loss is not 2 % below that of a constant guess and no longer falls, or no validation "
    "loss is below it and they no longer fall",
    source="Karpathy's input-independent baseline; the constant guess is counted from the targets seen",
    remedy="Look at inputs and targets side by side, as the network gets them; try to overfit one minibatch: "
    "Trainer(overfit_batches=1).",
    picture="train/loss beside baseline/unigram",
)
def no_learning(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    if facts.losses > 1:
        raise Abstain("several losses work against or beside each other")
    if not facts.targets_vary:
        raise Abstain("all targets are the same")
    guess = facts.constant_guess
    losses = evidence.losses()
    if guess is None:
        raise Abstain("the loss of a constant guess is not known for this loss")
    if evidence.last_step < ENOUGH:
        raise Abstain(f"fewer than {ENOUGH} steps were taken")
    scale = facts.examples_in_loss or 1 if facts.loss_is_sum else 1
    late, bound = losses.late / scale, guess - 0.02 * abs(guess)
    if not math.isfinite(late):
        raise Abstain("no late loss is finite")
    third = len(losses.values) // 3
    if late >= bound and median(losses.values[third : 2 * third]) / scale > late + 0.01 * abs(guess):
        raise Abstain("the loss is still falling towards that of a constant guess")
    val = evidence.get("val/loss")
    before = np.inf if val is None else np.nanmin(val.values[:-1], initial=np.inf)
    stands = val is not None and len(val.values) > 2 and val.values[-1] > before
    if not late < bound:
        yield Finding(
            "no_learning", "critical", "train/loss", evidence.last_step, late, bound, "",
            f"The loss is at {late:.3g}, where a guess that does not look at the input gets {guess:.3g}.",
        )  # fmt: skip
    elif stands and val is not None and float(np.nanmin(val.values)) >= guess - 0.01 * abs(guess):
        best, bound = float(np.nanmin(val.values)), guess - 0.01 * abs(guess)
        yield Finding(
            "no_learning", "critical", "val/loss", evidence.last_step, best, bound, "",
            f"The training examples are learned by heart (loss {late:.3g}), but on validation examples it never got "
            f"better than {best:.3g}, and a guess that does not look at the input gets {guess:.3g}: the targets do not "
            "depend on the inputs, or there are too few examples to learn how.",
        )  # fmt: skip


@rule(
    "overfitting",
    "outcome",
    "Overfitting",
    needs=("validation losses", "the training loss"),
    bound="the validation loss ends 5 % above its lowest while the training loss is lower than then",
    source="early stopping's own criterion; 5 % is ours",
    remedy="Stop at the lowest validation loss (EarlyStopping), or more data, dropout, weight decay, fewer parameters.",
    picture="train/loss and val/loss",
)
def overfitting(evidence: Evidence) -> Iterator[Finding]:
    val, losses = _validated(evidence)
    if len(val.values) < 3:
        raise Abstain("fewer than 3 validations")
    lowest = int(np.nanargmin(val.values))
    best, last = float(val.values[lowest]), float(val.values[-1])
    then = np.interp(val.steps[lowest], losses.steps, losses.values)
    if last > best + 0.05 * abs(best) and losses.late < then:
        yield Finding(
            "overfitting", "warning", "val/loss", int(val.steps[lowest]), last, best + 0.05 * abs(best), "",
            f"The validation loss was lowest at step {val.steps[lowest]:,} with {best:.3g} and ends at {last:.3g}, "
            f"while the training loss fell on to {losses.late:.3g}.",
        )  # fmt: skip


@rule(
    "overregularized",
    "outcome",
    "Regularization wins",
    needs=("validation losses", "the training loss", "dropout or weight decay"),
    bound="dropout from 0.4 on where the validation loss is below the training loss after 1,000 steps, or from 0.75 on "
    "where it is not; with weight decay, activations that fade to "
    "less than half of their start",
    source="a regularizer closes a gap; where there is none it only costs. What decay does to the weights, activations "
    "show whatever the optimizer",
    explains=("no_learning", "dead_units", "vanishing_gradients", "update_too_large", "saturation"),
    remedy="Less dropout, less weight decay.",
    picture="train/loss above val/loss; activation_std, which falls",
)
def overregularized(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    decay = max((each.weight_decay for each in facts.optimizers), default=0.0)
    if not facts.dropout and not decay:
        return
    if decay:
        layers = evidence.of("preactivation_std")
        faded = {name: each.late / each.start for name, each in layers.items() if each.start > 0}
        if faded and (worst := min(faded, key=lambda name: faded[name])) and faded[worst] < 0.5:
            yield Finding(
                "overregularized", "warning", worst, evidence.last_step, faded[worst], 0.5, "",
                f"The spread of the input of the activation of {worst} has shrunk to {faded[worst]:.0%} of what it was "
                f"at the start: weight decay {decay:g} is stronger than the gradient.",
            )  # fmt: skip
            return
    if facts.dropout >= DROPOUT:
        val, losses = _validated(evidence)
        train, held = losses.late, float(val.values[-1])
        if not math.isfinite(train) or not math.isfinite(held):
            raise Abstain("the last losses are not finite")
        if facts.dropout < HEAVY:
            _comparable(evidence)
        if evidence.last_step < PATIENT and facts.dropout < HEAVY:
            raise Abstain(f"fewer than {PATIENT:,} steps leave no gap that dropout could close")
        if held <= train or facts.dropout >= HEAVY:
            yield Finding(
                "overregularized", "warning", "dropout", evidence.last_step, facts.dropout, DROPOUT, "",
                f"Dropout {facts.dropout:g} does not help: the loss is {held:.3g} on validation examples and "
                f"{train:.3g} on training examples with dropout. The network underfits.",
            )  # fmt: skip


def _comparable(evidence: Evidence) -> None:
    """Raises Abstain if the training loss may have terms that the validation loss lacks."""
    if not evidence.facts.loss_is_bare:
        raise Abstain("the training loss has a factor or other terms, which the validation loss need not have")


def _validated(evidence: Evidence):  # type: ignore[no-untyped-def]
    val = evidence.get("val/loss")
    if val is None or not np.isfinite(val.values).any():
        raise Abstain("there was no validation loss")
    return val, evidence.losses()
