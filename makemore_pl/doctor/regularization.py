"""The rule for regularization that wins: dropout and weight decay."""

import math
from collections.abc import Iterator

import numpy as np

from makemore_pl.doctor.evidence import Abstain, Evidence, NotApplicable, Series, median
from makemore_pl.doctor.facts import OptimizerFacts
from makemore_pl.doctor.finding import Finding
from makemore_pl.doctor.outcome import comparable, validated
from makemore_pl.doctor.rule import rule

DROPOUT, MUCH, HEAVY = 0.4, 0.55, 0.75
"""Share that is dropped: from which on it is judged by the gap, where soon, and where it is too much in any case."""
PATIENT, SOON = 1000, 150
"""Steps before it is judged."""
LEARNS, LEVEL = 100, 0.98
"""Steps after which a loss above this share of a constant guess's is that of a network that has learned nothing."""
ALONE = 0.2
"""Share of itself that decay alone has to take from a weight in the course of the run, to first order."""


@rule(
    "overregularized",
    "outcome",
    "Regularization wins",
    needs=("the training loss", "dropout or weight decay", "validation losses, for dropout below 0.75"),
    bound="dropout from 0.4 on where the validation loss is below the training loss after 1,000 steps, from 0.55 on "
    "after 150 or where the training loss after 100 is that of a constant guess, or from 0.75 on in any case; below "
    "0.75 only where the loss is above half (from 0.55 on a quarter) of a constant guess's; with weight decay that "
    "alone could take a fifth from the weights, preactivations that fade to less than half of their start, or weights "
    "that do in the median matrix where the loss is above a quarter of its start (with a normalisation 0.7); or decay "
    "that adds more to the gradient than it has, where the loss is above a fifth of its start",
    source="a regularizer closes a gap; where there is none it only costs. What decay does to the weights, activations "
    "show whatever the optimizer",
    explains=("no_learning", "dead_units", "vanishing_gradients", "update_too_large", "saturation"),
    remedy="Less dropout, less weight decay.",
    picture="train/loss above val/loss; activation_std, which falls",
)
def overregularized(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    optimizers = evidence.known(facts.optimizers, "optimizers", "the optimizers were not seen")
    decay = max((each.weight_decay for each in optimizers), default=0.0)
    dropout = evidence.known(facts.dropout, "dropout", "it was not seen which layers run")
    if not dropout and not decay:
        raise NotApplicable("there is neither dropout nor weight decay")
    if decay and _reach(evidence, optimizers) > ALONE:
        layers = evidence.of("preactivation_std")
        learned = evidence.losses().late / evidence.beginning()
        if learned > (0.7 if facts.normalises else 0.25):  # behind a normalisation the size of weights does not matter
            weights = {name: each.late / each.start for name, each in _weights(evidence).items() if each.start > 0}
            if median(weights.values()) < 0.5:
                worst = min(weights, key=lambda name: weights[name])
                yield _decayed(evidence, "The weights", worst, weights[worst], decay)
                return
        pull = _pull(evidence, decay) if all(each.couples_decay for each in optimizers) else {}
        if learned > 0.2 and median(pull.values()) > 1:
            worst = max(pull, key=lambda name: pull[name])
            yield Finding(
                "overregularized", "warning", worst, evidence.last_step, median(pull.values()), 1.0, "",
                f"Weight decay {decay:g} pulls a typical matrix {median(pull.values()):.2g} times as hard as the "
                "gradient does.",
            )  # fmt: skip
            return
        faded = {name: each.late / each.start for name, each in layers.items() if each.start > 0}
        if faded and (worst := min(faded, key=lambda name: faded[name])) and faded[worst] < 0.5:
            yield _decayed(evidence, "What goes into the activation", worst, faded[worst], decay)
            return
    if dropout >= HEAVY:
        yield Finding(
            "overregularized", "warning", "dropout", evidence.last_step, dropout, HEAVY, "",
            f"Dropout {dropout:g} leaves {1 - dropout:.0%} of the activations: the network underfits.",
        )  # fmt: skip
    elif dropout >= MUCH and evidence.last_step >= LEARNS and (loss := _unlearned(evidence)):
        yield Finding(
            "overregularized", "warning", "dropout", evidence.last_step, dropout, MUCH, "",
            f"Dropout {dropout:g} leaves {1 - dropout:.0%} of the activations, and the loss, {loss:.3g}, is no better "
            "than that of a constant guess.",
        )  # fmt: skip
    elif dropout >= DROPOUT:
        val, losses = validated(evidence)
        comparable(evidence)
        wait = PATIENT if dropout < MUCH else SOON
        if evidence.last_step < wait:
            raise Abstain(f"fewer than {wait:,} steps leave no gap that dropout could close")
        train, held, guess = losses.late, float(val.values[-1]), evidence.guess()
        if not math.isfinite(train) or not math.isfinite(held):
            raise Abstain("the last losses are not finite")
        learns_well = guess is not None and held < (0.5 if dropout < MUCH else 0.25) * guess
        if held <= train and not learns_well:
            yield Finding(
                "overregularized", "warning", "dropout", evidence.last_step, dropout, DROPOUT, "",
                f"Dropout {dropout:g} has nothing to mend: the network costs {held:.3g} on validation examples, "
                f"and {train:.3g} on training examples with dropout. It underfits.",
            )  # fmt: skip


def _reach(evidence: Evidence, optimizers: tuple[OptimizerFacts, ...]) -> float:
    """What decay alone can have taken from a weight, in shares of it, summed over the steps."""
    lr, most = evidence.get("lr"), 0.0
    for each in optimizers:
        rate = each.lr if lr is None else float(np.nanmean(lr.values))
        share = 1.0 if each.adaptive and each.couples_decay else each.weight_decay / (1 - min(each.momentum, 0.99))
        most = max(most, rate * share * evidence.last_step if each.weight_decay else 0.0)
    return most


def _unlearned(evidence: Evidence) -> float | None:
    """The late training loss where it is that of a constant guess."""
    late, guess = evidence.losses().late, evidence.guess()
    return late if guess is not None and late > LEVEL * guess else None


def _pull(evidence: Evidence, decay: float) -> dict[str, float]:
    """Matrix -> what weight decay adds to its gradient over the gradient itself, late in the run."""
    ratios = {name: each.late for name, each in evidence.of("grad_data_ratio").items()}
    return {name: decay / ratio for name, ratio in ratios.items() if ratio > 0}


def _decayed(evidence: Evidence, what: str, where: str, share: float, decay: float) -> Finding:
    return Finding(
        "overregularized", "warning", where, evidence.last_step, share, 0.5, "",
        f"{what} of {where} has shrunk to {share:.0%} of its spread at the start: weight decay {decay:g} wins over the "
        "gradient.",
    )  # fmt: skip


def _weights(evidence: Evidence) -> dict[str, Series]:
    """Matrix -> its standard deviation, which is that of its gradient over the ratio of both."""
    ratios, found = evidence.of("grad_data_ratio"), {}
    for name, gradient in evidence.of("grad_std").items():
        if name in ratios and np.array_equal(gradient.steps, ratios[name].steps):
            ratio = ratios[name].values
            found[name] = Series(gradient.steps, gradient.values / np.where(ratio > 0, ratio, np.nan))
    return found
