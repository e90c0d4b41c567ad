"""The faults of modules: which ids name each, how strong it is drawn, and where it is possible."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks.doctor.recipe import Recipe

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True, slots=True)
class ModuleFault:
    """One way to get it wrong."""

    name: str
    ids: tuple[str, ...]
    """Each of them says what is wrong; more than one where two names are equally true."""
    weakest: float = 1.0
    strongest: float = 1.0
    """Strengths are drawn between these, on a logarithmic scale."""
    possible: Callable[[Recipe], bool] = lambda recipe: True
    pairs: bool = False
    """Whether it is also drawn together with another such fault."""


def _with(*traits: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.traits.issuperset(traits)


def _sgd(recipe: Recipe) -> bool:
    return recipe.optimizer in ("sgd", "momentum", "nesterov")


MODULE_FAULTS = [
    # the data
    ModuleFault("inputs too large", ("input_scale",), 30, 3000, _with("float", "unnormalised"), True),
    ModuleFault("inputs too small", ("input_scale",), 300, 10_000, _with("float", "unnormalised")),
    ModuleFault("inputs as bytes", ("input_scale",), 30, 70, _with("float", "unnormalised")),
    ModuleFault("one feature too large", ("input_scale",), 300, 10_000, _with("table", "unnormalised")),
    ModuleFault("targets not scaled", ("target_scale",), 20, 1000, lambda r: r.task == "regression", True),
    ModuleFault("targets shuffled", ("no_learning",), possible=lambda r: r.task != "own"),
    ModuleFault("one input for all", ("constant_input",), possible=_with("float", "supervised")),
    ModuleFault("nan in the data", ("not_finite",), possible=_with("float")),
    ModuleFault("validated differently", ("train_val_mismatch",), 2, 8, _with("float", "supervised")),
    ModuleFault("few examples", ("overfitting",), 30, 120, _with("supervised", "automatic")),
    # the loss and the output
    ModuleFault("softmax twice", ("softmax_before_cross_entropy",), 1, 2, lambda r: r.task == "classes", True),
    ModuleFault("sigmoid twice", ("activation_before_loss",), possible=lambda r: r.task == "binary", pairs=True),
    ModuleFault(
        "relu at the output", ("activation_before_loss",), possible=lambda r: r.task != "own"
    ),
    ModuleFault("sigmoid at the output", ("activation_before_loss",), possible=lambda r: r.task == "regression"),
    ModuleFault("logits as likelihoods", ("activation_before_loss",), possible=lambda r: r.task == "classes"),
    ModuleFault("sum for mean", ("update_too_large",), possible=lambda r: _sgd(r) and r.task != "own"),
    # the way back and the optimizer
    ModuleFault("never zeroed", ("gradients_accumulate",), pairs=True),
    ModuleFault("left out of the optimizer", ("frozen_parameters",), 1, 2, _with("supervised"), True),
    ModuleFault("detached", ("no_gradient",), possible=_with("detachable")),
    ModuleFault("examples mixed", ("examples_mixed",), possible=_with("mixable")),
    ModuleFault("rate too high", ("update_too_large",), 30, 3000),
    ModuleFault("rate too low", ("update_too_small",), 30, 3000),
    ModuleFault("clipped too low", ("clipping",), 1e-4, 3e-2, lambda r: _sgd(r) and "automatic" in r.traits),
    # regularization
    ModuleFault("too much decay", ("overregularized",), 0.03, 1, lambda r: r.optimizer == "adam" and r.task != "own"),
    ModuleFault("too much dropout", ("overregularized",), 0.5, 0.9, _with("dropout")),
    # the start
    ModuleFault("constant weights", ("symmetric_units",), 0.01, 0.2, _with("feedforward"), True),
    ModuleFault(
        "zero weights", ("symmetric_units", "vanishing_activations", "no_gradient"),
        possible=_with("feedforward", "plain"),
    ),
    ModuleFault(
        "weights too small",
        ("vanishing_activations", "vanishing_gradients"), 4, 50,
        lambda r: r.depth > 2 and r.traits.issuperset(("feedforward", "plain")),
    ),
    ModuleFault(
        "weights too large, tanh", ("saturation",), 3, 20,
        lambda r: r.activation == "tanh" and r.traits.issuperset(("feedforward", "plain")),
    ),
    ModuleFault(
        "weights too large", ("exploding_activations",), 5, 30,
        lambda r: r.activation != "tanh" and r.depth > 2 and r.traits.issuperset(("feedforward", "plain")),
    ),
    ModuleFault("confident head", ("confident_start",), 10, 100, lambda r: r.task == "classes", True),
    ModuleFault(
        "dead relu", ("dead_units",), 5, 50,
        lambda r: r.activation == "relu" and r.traits.issuperset(("feedforward", "dying")),
    ),
    # layers
    ModuleFault("no activation", ("linear_network",), possible=_with("feedforward", "nonlinear"), pairs=True),
    ModuleFault(
        "sigmoid layers", ("vanishing_gradients",),
        possible=lambda r: r.depth > 3 and r.traits.issuperset(("feedforward", "plain")),
    ),
    ModuleFault("eval left on", ("batchnorm_eval",), 1, 40, _with("batchnorm"), True),
    ModuleFault("small batch", ("batchnorm_small_batch",), 2, 6, _with("flat batchnorm")),
    ModuleFault("long memory", ("batchnorm_lag", "train_val_mismatch"), 1e-4, 2e-3, _with("batchnorm")),
    ModuleFault("bias before batchnorm", ("bias_before_batchnorm",), possible=lambda r: r.norm),
    ModuleFault("short memory", ("batchnorm_noise",), 8, 14, _with("flat batchnorm")),
]  # fmt: skip
BY_NAME = {each.name: each for each in MODULE_FAULTS}


def spoiled(recipe: Recipe, faults: list[ModuleFault], draw: random.Random) -> Recipe:
    """The recipe with these faults, each of a strength that is drawn."""
    chosen = []
    for fault in faults:
        strength = fault.weakest * (fault.strongest / fault.weakest) ** draw.random()
        chosen.append((fault.name, float(f"{strength:.3g}")))
    return replace(recipe, faults=tuple(chosen))


@torch.no_grad()
def spoil_weights(recipe: Recipe, network: nn.Module) -> None:
    """Faults of the initialization, on the linear and convolutional layers in the order of their definition."""
    *hidden, head = [each for each in network.modules() if isinstance(each, LAYERS)]
    for layer in hidden:
        if recipe.has("constant weights"):
            layer.weight.fill_(recipe.strength("constant weights"))
        if recipe.has("zero weights"):
            layer.weight.zero_()
        layer.weight *= recipe.strength("weights too large") * recipe.strength("weights too large, tanh")
        layer.weight /= recipe.strength("weights too small")
    if recipe.has("constant weights") or recipe.has("zero weights"):
        for layer in hidden:
            if layer.bias is not None:
                layer.bias.zero_()
    if recipe.has("confident head"):
        head.weight *= recipe.strength("confident head")
    if recipe.has("dead relu"):
        bias = hidden[-1].bias
        assert bias is not None
        bias.fill_(-recipe.strength("dead relu"))
