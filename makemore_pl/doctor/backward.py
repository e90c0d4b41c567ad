"""Rules for the backward pass: gradients that vanish, explode, never arrive, are left over, or mix examples."""

from collections.abc import Iterator

import numpy as np

from makemore_pl.doctor.evidence import Abstain, Evidence, NotApplicable, median
from makemore_pl.doctor.finding import Finding, listed
from makemore_pl.doctor.rule import rule
from makemore_pl.doctor.update_ratios import typical_ratio

VANISHED, EXPLODED, SPIKED = 0.01, 100.0, 1000.0
LARGE = -1.5
"""log10 of update over data, above which a jump of the gradient is no wonder."""


@rule(
    "gradients_accumulate",
    "backward",
    "Gradients are never zeroed",
    needs=("the gradients before and after backward",),
    bound="between two steps of an optimizer its gradients were never zero",
    source="Karpathy's list of slips",
    explains=("update_too_large", "exploding_gradients", "diverged", "not_finite", "loss_spike", "no_learning",
              "dead_units", "clipping", "saturation", "overfitting", "update_too_small"),
    remedy="Call optimizer.zero_grad() before each backward; in automatic optimization Lightning does, unless "
    "optimizer_zero_grad is overridden.",
    picture="grad_norm, which grows",
)  # fmt: skip
def gradients_accumulate(evidence: Evidence) -> Iterator[Finding]:
    otherwise = "the gradients before backward were not looked at"
    if evidence.known(evidence.facts.accumulates, "accumulates", otherwise):
        yield Finding(
            "gradients_accumulate", "critical", "gradients", 1, None, None, "",
            "Each backward adds to the gradients of all steps before it, because nothing sets them to zero.",
        )  # fmt: skip


@rule(
    "examples_mixed",
    "backward",
    "Examples are mixed up",
    needs=("a network that can be run again on a copy",),
    bound="changing one example changes the output of another, in eval mode",
    source="the dependence test of Karpathy's recipe; view where permute was meant",
    explains=("confident_start", "no_learning", "train_val_mismatch", "overfitting"),
    remedy="Look for view or reshape where permute or transpose is meant, for softmax or a mean over dim=0, and for "
    "batch_first.",
    picture="train/loss beside val/loss",
)
def examples_mixed(evidence: Evidence) -> Iterator[Finding]:
    otherwise = "the network was not run again with another example"
    if where := evidence.known(evidence.facts.examples_mixed, "examples_mixed", otherwise):
        yield Finding(
            "examples_mixed", "critical", where, 0, None, None, "",
            f"In {where} the output of one example depends on the other examples of its minibatch.",
        )  # fmt: skip


@rule(
    "no_gradient",
    "backward",
    "Parameters that the loss does not reach",
    needs=("the gradients of some steps",),
    bound="no gradient, or nothing but zeros, in every watched step",
    source="a parameter without gradient is not trained",
    explains=("no_learning", "update_too_small", "vanishing_gradients"),
    remedy="Look for detach(), .data, torch.no_grad(), argmax or a conversion to numpy between these layers and the "
    "loss. What is frozen on purpose: parameter.requires_grad_(False).",
    picture="grad_std",
)
def no_gradient(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    if unreached := evidence.known(facts.unreached, "unreached", "it was not seen which parameters get a gradient"):
        yield Finding(
            "no_gradient", "warning", ", ".join(unreached), 0, float(len(unreached)), 0.0, "",
            f"The loss does not reach {listed(unreached)}: no gradient has come there, though the optimizer has "
            "them.",
        )  # fmt: skip
    elif facts.unused:
        yield Finding(
            "no_gradient", "info", ", ".join(facts.unused), 0, float(len(facts.unused)), 0.0, "",
            f"{listed(facts.unused)} are in the optimizer and never used.",
        )  # fmt: skip


@rule(
    "vanishing_gradients",
    "backward",
    "Gradients fade on their way back",
    needs=("activation_grad_std/<layer> of two layers",),
    bound="the gradient by the first layer's activations below 1 % of that by the last one's, at the start and in the "
    "median of the run",
    source="ten times AUTOTRAINER's 1e-3, which is on weights; PyTorch's own initialization passes on 0.41 a layer",
    explains=("no_learning", "update_too_small"),
    remedy="Draw weights with the gain of their activation, add a normalisation or residual connections.",
    picture="activation_grad_std over the layers",
)
def vanishing_gradients(evidence: Evidence) -> Iterator[Finding]:
    layers = evidence.need("activation_grad_std")
    if len(layers) < 2:
        raise NotApplicable("there is one activation layer only")
    names, (first, *_, last) = list(layers), layers.values()
    both = np.intersect1d(first.steps, last.steps)
    ratio = first.at(both) / np.where((behind := last.at(both)) > 0, behind, np.nan)
    # a mean over positions gives each of them a small share of the gradient
    positions = evidence.facts.positions
    ratio = ratio * max(positions.get(names[0], 1) / positions.get(names[-1], 1), 1)
    most = max((each for each in (median(ratio[:3]), median(ratio)) if np.isfinite(each)), default=VANISHED)
    if most < VANISHED:
        yield Finding(
            "vanishing_gradients", "warning", next(iter(layers)), int(first.steps[0]), most, VANISHED, "",
            f"Of the gradient that the last layer's activations get, {most:.2%} arrives at {next(iter(layers))}.",
        )  # fmt: skip


@rule(
    "exploding_gradients",
    "backward",
    "Gradients explode",
    needs=("grad_norm/before_clipping",),
    bound="the gradient by the first layer's activations 100 times that by the last one's, where there is one loss, "
    "or in a training whose loss falls a norm 1,000 times the usual one",
    source="AUTOTRAINER's 70, rounded up; the factor 1,000 is ours",
    explains=("update_too_large", "diverged", "not_finite", "loss_spike", "clipping", "dead_units", "no_learning"),
    remedy="Draw weights with the gain of their activation; clip the gradient's norm: Trainer(gradient_clip_val=1.0).",
    picture="grad_norm",
)
def exploding_gradients(evidence: Evidence) -> Iterator[Finding]:
    layers = list(evidence.of("activation_grad_std").items())
    # of several losses, each has its own last layer, and an optimizer may have moved the network in between
    if evidence.facts.losses == 1 and len(layers) > 1 and layers[-1][1].start > 0:
        ratio = layers[0][1].start / layers[-1][1].start
        if ratio > EXPLODED:
            yield Finding(
                "exploding_gradients", "warning", layers[0][0], 0, ratio, EXPLODED, "",
                f"The gradient grows {ratio:.3g}-fold from the last layer's activations to those of {layers[0][0]}.",
            )  # fmt: skip
            return
    norm = evidence.get("grad_norm/before_clipping")
    if norm is None:
        raise Abstain("grad_norm was not measured")
    if typical_ratio(evidence) > LARGE:
        return  # large steps make large gradients
    losses = evidence.losses()
    usual, highest = median(norm.values), float(np.nanmax(norm.values, initial=0.0))
    # if the loss goes up and stays there, too large steps have caused the large gradients
    if np.sum(evidence.steady_losses() > evidence.far()) >= 3:
        return
    if losses.late < losses.values[0] and usual > 0 and highest > SPIKED * max(usual, 1e-3):
        step = int(norm.steps[int(np.nanargmax(norm.values))])
        yield Finding(
            "exploding_gradients", "warning", "gradients", step, highest / usual, SPIKED, "",
            f"The gradient's norm is {usual:.3g} most of the time and jumps to {highest:.3g} at step {step:,}.",
        )  # fmt: skip
