"""Rules for the start: the scale of inputs and targets, equal units, and a first loss that is too high."""

import math
from collections.abc import Iterator

from makemore_pl.doctor.evidence import Abstain, Evidence, NotApplicable
from makemore_pl.doctor.facts import Scale
from makemore_pl.doctor.finding import Finding
from makemore_pl.doctor.rule import rule

EXCESS = 1.5
"""Bound of the first loss, in nats above ln V. With less, the loss of our networks after 1,500 steps is no worse."""
LARGE, SMALL, FAINT, OFFSET, SPREAD = 10.0, 0.02, 0.01, 10.0, 100.0
FEW = 8
"""Targets of which fewer can lie close together by chance."""


@rule(
    "constant_input",
    "start",
    "All examples look the same",
    needs=("a minibatch",),
    bound="all examples of the first minibatch are equal",
    source="Karpathy's recipe: an input-independent baseline learns the same",
    explains=(
        "no_learning",
        "dead_units",
        "input_scale",
        "vanishing_activations",
        "vanishing_gradients",
        "overfitting",
        "train_val_mismatch",
        "batchnorm_lag",
    ),
    remedy="Look at one minibatch as the network gets it: print(x[:3]). Something before it overwrites the data.",
    picture="train/loss beside baseline/unigram",
)
def constant_input(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    if not evidence.known(facts.inputs_vary, "inputs_vary", "the first minibatch was not looked at"):
        value = facts.inputs.mean if facts.inputs else None
        yield Finding(
            "constant_input", "critical", "input", 0, value, None, "",
            "Every example of the first minibatch is the same: there is nothing to learn from.",
        )  # fmt: skip


@rule(
    "input_scale",
    "start",
    "Inputs are not scaled",
    needs=("a minibatch of floating-point inputs",),
    bound="rms above 10, no number above 0.02, rms below 0.01 and no number above 0.1, a mean more than 10 standard "
    "deviations from 0, or features whose standard deviations differ by more than a factor 100; not where the network "
    "begins with a normalisation",
    source="LeCun et al. 1998, Efficient BackProp, 4.3: mean 0 and variance 1; a factor 10 is left for taste",
    explains=(
        "saturation", "dead_units", "exploding_activations", "vanishing_activations", "exploding_gradients",
        "vanishing_gradients", "update_too_large", "update_too_small", "confident_start", "diverged", "not_finite",
        "no_learning", "loss_spike", "clipping",
    ),
    remedy="Subtract the training split's mean and divide by its standard deviation, feature by feature: "
    "x = (x - mean) / std. Images of bytes: x / 255 first.",
    picture="preactivation_std of the first layer",
)  # fmt: skip
def input_scale(evidence: Evidence) -> Iterator[Finding]:
    inputs = _inputs(evidence)
    if evidence.facts.inputs_normalised:
        raise NotApplicable("the network begins with a normalisation")
    if evidence.facts.inputs_vary is False:
        return
    if reason := _out_of_scale(inputs):
        value, bound, words = reason
        yield Finding(
            "input_scale", "warning", "input", 0, value, bound, "",
            f"The inputs are not scaled: {words}. The first layer's outputs and gradients are off by as much.",
        )  # fmt: skip


@rule(
    "target_scale",
    "start",
    "Targets are not scaled",
    needs=("the targets of a regression",),
    bound="rms above 10, or no number above 0.02, or a mean more than 10 standard deviations from 0; for a binary "
    "cross-entropy outside of 0 to 1",
    source="LeCun et al. 1998: the output layer starts near 0 with a spread near 1",
    explains=(
        "update_too_large", "exploding_gradients", "diverged", "not_finite", "no_learning", "loss_spike", "dead_units",
        "saturation", "update_too_small", "vanishing_gradients", "clipping", "activation_before_loss",
    ),
    remedy="Train on y = (y - mean) / std of the training split, and undo it on predictions.",
    picture="train/loss",
)  # fmt: skip
def target_scale(evidence: Evidence) -> Iterator[Finding]:
    if evidence.facts.loss in ("cross_entropy", "nll"):
        raise NotApplicable("the targets are classes")
    targets = evidence.known(evidence.facts.targets, "targets", "the loss is none whose targets could be read")
    if evidence.facts.loss == "bce":
        if targets.largest > 1 or targets.smallest < 0:
            value = targets.largest if targets.largest > 1 else targets.smallest
            yield Finding(
                "target_scale", "critical", "target", 0, value, 1.0, "",
                f"A binary cross-entropy wants targets between 0 and 1, and gets {targets.smallest:.3g} to "
                f"{targets.largest:.3g}.",
            )  # fmt: skip
        return
    if _alike(evidence.facts.inputs, targets) and not evidence.facts.inputs_normalised:
        return  # an autoencoder's, whose inputs are to be scaled
    few = (evidence.facts.batch_size or FEW) < FEW
    if targets.varies and (reason := _out_of_scale(targets)) and not (few and "only" in reason[2]):
        value, bound, words = reason
        yield Finding(
            "target_scale", "warning", "target", 0, value, bound, "",
            f"The targets are not scaled: {words}. The network starts with outputs near 0 and has to travel there.",
        )  # fmt: skip


def _alike(inputs: Scale | None, targets: Scale) -> bool:
    """Whether the targets have the scale of the inputs, to a hundredth of their spread."""
    if inputs is None:
        return False
    return abs(inputs.mean - targets.mean) < 0.01 * targets.std and abs(inputs.std - targets.std) < 0.01 * targets.std


def _inputs(evidence: Evidence) -> Scale:
    if evidence.facts.tokens:
        raise NotApplicable("the network begins with an embedding, whose input has no scale")
    otherwise = "the first minibatch has no floating-point input that was seen"
    return evidence.known(evidence.facts.inputs, "inputs", otherwise)


def _out_of_scale(scale: Scale) -> tuple[float, float, str] | None:
    if scale.feature_spread > SPREAD:
        return scale.feature_spread, SPREAD, f"one feature's spread is {scale.feature_spread:.3g} times the usual one's"
    if scale.rms > LARGE:
        return scale.rms, LARGE, f"mean {scale.mean:.3g}, standard deviation {scale.std:.3g}"
    if scale.largest < SMALL:
        return scale.largest, SMALL, f"no number is larger than {scale.largest:.3g}"
    if scale.rms < FAINT and scale.largest < 0.1:
        return scale.rms, FAINT, f"standard deviation {scale.std:.3g}, and no number is larger than {scale.largest:.3g}"
    if scale.std > 0 and abs(scale.mean) > OFFSET * scale.std and abs(scale.mean) > 1:
        return abs(scale.mean) / scale.std, OFFSET, f"mean {scale.mean:.3g}, standard deviation only {scale.std:.3g}"
    return None


@rule(
    "symmetric_units",
    "start",
    "Units are copies of each other",
    needs=("the weights after the first steps",),
    bound="nine tenths of a hidden layer's units start with equal weights, or half of them still are equal after some "
    "steps",
    source="units with equal weights get equal gradients (Goodfellow et al. 2016, 8.4)",
    explains=(
        "no_learning",
        "vanishing_gradients",
        "vanishing_activations",
        "exploding_activations",
        "saturation",
        "update_too_small",
        "update_too_large",
        "no_gradient",
    ),
    remedy="Draw weights at random, never as a constant: nn.init.kaiming_normal_(layer.weight). Zeros are fine for "
    "biases and for a last layer.",
    picture="histograms of weights",
)
def symmetric_units(evidence: Evidence) -> Iterator[Finding]:
    otherwise = "the weights of the first steps were not compared"
    copies = evidence.known(evidence.facts.copies, "copies", otherwise)
    if copies := {name: share for name, share in copies.items() if share >= 0.5}:
        name = max(copies, key=lambda each: copies[each])
        yield Finding(
            "symmetric_units", "critical", ", ".join(copies), 0, copies[name], 0.5, "",
            f"{copies[name]:.0%} of the units of {name} have the weights of another one: they learn the same, and the "
            "layer is as good as a few units.",
        )  # fmt: skip


@rule(
    "confident_start",
    "start",
    "The network begins confidently wrong",
    needs=("the first training loss", "a cross-entropy and its number of classes"),
    bound="first loss more than 1.5 nats above ln V, the loss of equally likely classes; critical from 3",
    source="the lecture; the bound from our network: excesses below 2 nats cost nothing that 1,500 steps show",
    # a loss that falls at once: where it goes up, the steps are too large whatever the start was
    explains=("clipping", "exploding_gradients", "dead_units", "no_learning"),
    remedy="Start the last layer small: with torch.no_grad(): head.weight *= 0.01; head.bias.zero_(). By the formula: "
    "logits with standard deviation s add s^2 / 2 * (1 - 1 / V) nats, while s is below 1.",
    picture="train/loss: the hockey stick",
)
def confident_start(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    if facts.loss in ("mse", "l1"):
        raise NotApplicable("the loss is no cross-entropy")
    if facts.loss not in ("cross_entropy", "bce") or not facts.classes or not facts.loss_scale:
        raise Abstain("the loss is no cross-entropy alone whose classes could be counted")
    if facts.activation_before_loss:
        raise Abstain("the loss does not get logits")
    losses = evidence.get("train/loss")
    if losses is None or losses.steps[0] > 0:
        raise Abstain("the loss of step 0 was not seen")
    first = losses.values[0] / facts.loss_scale
    uniform = math.log(max(facts.classes, 2))
    excess = first - uniform
    if not excess > EXCESS:
        return
    yield Finding(
        "confident_start", "critical" if excess > 3 else "warning", "output", 0, excess, EXCESS, "",
        f"The first loss is {first:.2f} where {facts.classes} equally likely classes cost ln {facts.classes} = "
        f"{uniform:.2f}: the output layer starts too large, and the first steps only shrink it.",
    )  # fmt: skip
