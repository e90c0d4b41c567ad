"""Healthy and faulty trainings to measure the doctor by: what a case is, and configurations of this project."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HALVES = ("tuning", "reporting")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One training: what it ended at, and what the doctor said."""

    loss: float
    """Validation loss; infinite where training stopped being finite."""
    findings: tuple[tuple[str, str, str | None], ...]
    """Id, severity and because_of, in the doctor's order."""
    found_at: dict[str, int]
    """Id -> first step at which the evidence was enough."""


@dataclass(frozen=True, slots=True)
class Case:
    """A training with a fault, and its mended twin; or a healthy one, which has no twin."""

    name: str
    family: str
    """configuration or module."""
    half: str
    """tuning or reporting."""
    roots: tuple[str, ...]
    """Ids that should come first, in any order; none for a healthy one."""
    run: Callable[[int], Outcome]
    """By seed."""
    twin: Callable[[int], Outcome] | None = None


PLACEMENTS = ("none", "pre", "post", "output", "pre_output")
OPTIMIZERS = {
    "sgd": ["optim.lr=0.1"],
    "momentum": ["optim.lr=0.02", "optim.momentum=0.9"],
    "adam": ["optim=adam", "optim.lr=0.002"],
    "adamw": ["optim=adamw", "optim.lr=0.002"],
}
FAULTS: dict[str, tuple[tuple[str, ...], list[list[str]], Callable[[dict[str, Any]], bool]]] = {
    # name: (roots, overrides of each strength, whether this network can have it)
    "gain too low": (
        ("vanishing_activations",),
        [["model.gain=0.5"], ["model.gain=0.3"], ["model.gain=0.1"]],
        lambda net: net["placement"] in ("none", "output") and net["layers"] > 2 and net["activation"] == "tanh",
    ),
    "gain too high": (
        ("saturation",),
        [["model.gain=3"], ["model.gain=5"], ["model.gain=10"]],
        lambda net: net["placement"] in ("none", "output") and net["activation"] == "tanh",
    ),
    "small weights": (
        ("vanishing_activations",),
        [["model.init=small", "model.gain=1"]],
        lambda net: net["placement"] in ("none", "output") and net["layers"] > 1,
    ),
    "normal weights, tanh": (
        ("saturation",),
        [["model.init=normal", "model.gain=1", "model.hidden_bias=1"]],
        lambda net: net["placement"] in ("none", "output") and net["activation"] == "tanh",
    ),
    "normal weights, relu": (
        ("exploding_activations",),
        [["model.init=normal", "model.gain=1"]],
        lambda net: net["placement"] == "none" and net["activation"] != "tanh" and net["layers"] > 1,
    ),
    "confident output": (
        ("confident_start",),
        [["model.output_scale=0.5"], ["model.output_scale=1", "model.output_bias=1"], ["model.output_scale=3"]],
        lambda net: net["placement"] in ("none", "pre", "post"),
    ),
    "no activation": (("linear_network",), [["model.activation=identity"]], lambda net: net["layers"] > 1),
    "rate too low": (("update_too_small",), [["/10"], ["/30"], ["/100"]], lambda net: True),
    "rate too high": (("update_too_large",), [["*30"], ["*100"], ["*1000"]], lambda net: True),
    "small batch": (
        ("batchnorm_small_batch",),
        [["data.batch_size=8"], ["data.batch_size=4"], ["data.batch_size=2"]],
        lambda net: net["placement"] != "none",
    ),
    "long memory": (
        ("batchnorm_lag",),
        [["model.bn_momentum=0.001"], ["model.bn_momentum=0.0001"]],
        lambda net: net["placement"] != "none",
    ),
    "short memory": (
        ("batchnorm_noise",),
        [["model.bn_momentum=1", "data.batch_size=16"]],
        lambda net: net["placement"] in ("pre", "pre_output"),
    ),
    "clipping": (
        ("clipping",),
        [["trainer.gradient_clip_val=0.1"], ["trainer.gradient_clip_val=0.01"]],
        lambda net: net["optimizer"] in ("sgd", "momentum"),
    ),
    "weight decay": (
        ("overregularized",),
        [["optim.weight_decay=0.03"], ["optim.weight_decay=0.3"]],
        lambda net: net["optimizer"] != "adamw",
    ),
    "dropout": (("overregularized",), [["model.dropout=0.5"], ["model.dropout=0.85"]], lambda net: True),
    "confident output and high gain": (
        ("confident_start", "saturation"),
        [["model.output_scale=1", "model.init=normal", "model.gain=1"]],
        lambda net: net["placement"] == "none" and net["activation"] == "tanh",
    ),
    "confident output and low rate": (
        ("confident_start", "update_too_small"),
        [["model.output_scale=1", "/100"]],
        lambda net: net["placement"] == "none",
    ),
}


def network(draw: random.Random) -> tuple[dict[str, Any], list[str]]:
    """A healthy network and its overrides."""
    net = {
        "placement": draw.choice(PLACEMENTS),
        "layers": draw.choice((1, 2, 3, 5)),
        "activation": draw.choice(("tanh", "tanh", "relu", "gelu")),
        "optimizer": draw.choice(list(OPTIMIZERS)),
    }
    overrides = [
        f"model.batchnorm={net['placement']}",
        f"model.n_layers={net['layers']}",
        f"model.n_hidden={200 if net['layers'] == 1 else 100}",
        f"model.activation={net['activation']}",
        f"model.init={draw.choice(('kaiming', 'xavier'))}",
        f"data.batch_size={draw.choice((16, 32, 64, 128))}",
        *OPTIMIZERS[net["optimizer"]],
    ]
    if "output" in net["placement"]:
        overrides.append("model.output_scale=0.1")
    return net, overrides


def spoiled(overrides: list[str], changes: list[str]) -> list[str]:
    """With changes in place of what they replace; `*30` and `/30` change the learning rate by a factor."""
    new = {change.partition("=")[0]: change for change in changes if "=" in change}
    factors = [float(each[1:]) ** (1 if each[0] == "*" else -1) for each in changes if "=" not in each]
    found = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "optim.lr" and factors:
            found.append(f"{key}={float(value) * factors[0]:.6g}")
        elif key not in new:
            found.append(override)
    return [*found, *new.values()]


def configurations(healthy: int, each: int, train: Callable[[list[str], int], Outcome]) -> list[Case]:
    """Cases of this project, both halves; the halves differ in networks and in the seeds that are used.

    Args:
        healthy: healthy networks in each half.
        each: networks for each strength of each fault in each half.
        train: overrides and seed -> outcome.
    """
    cases = []
    for place, half in enumerate(HALVES):
        draw = random.Random(place)
        for number in range(healthy):
            _, overrides = network(draw)
            cases.append(_case(f"healthy {number}", half, (), overrides, None, train))
        for name, (roots, strengths, possible) in FAULTS.items():
            for strength, changes in enumerate(strengths):
                for number in range(each):
                    net, overrides = network(draw)
                    while not possible(net):
                        net, overrides = network(draw)
                    title = f"{name}, {' '.join(changes)}, {net['placement']} {net['layers']} {number}.{strength}"
                    cases.append(_case(title, half, roots, spoiled(overrides, changes), overrides, train))
    return cases


def _case(
    name: str,
    half: str,
    roots: tuple[str, ...],
    overrides: list[str],
    mended: list[str] | None,
    train: Callable[[list[str], int], Outcome],
) -> Case:
    shift = 1000 * HALVES.index(half)
    return Case(
        name,
        "configuration",
        half,
        roots,
        lambda seed: train(overrides, seed + shift),
        (lambda seed: train(mended, seed + shift)) if mended is not None else None,
    )
