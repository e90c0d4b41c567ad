"""Configurations of this project, healthy and faulty, drawn at random."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.doctor.case import DRAW, Case, Outcome
from benchmarks.doctor.judging import judge

ROOT = Path(__file__).parents[2]
STEPS = ["trainer.max_steps=1200", "trainer.watch_every=40", "trainer.val_check_interval=300"]
NO_PICTURES = ["~callbacks.figures", "~callbacks.histograms", "~callbacks.samples"]
"""They measure nothing that the doctor reads, and take half of a short run's time."""
OPTIMIZERS = {
    "tuning": {
        "sgd": ["optim.lr=0.1"],
        "momentum": ["optim.lr=0.02", "optim.momentum=0.9"],
        "adam": ["optim=adam", "optim.lr=0.002"],
        "adamw": ["optim=adamw", "optim.lr=0.002"],
    },
    "reporting": {
        "sgd": ["optim.lr=0.2", "optim.warmup_steps=50"],
        "momentum": ["optim.lr=0.03", "optim.momentum=0.85", "optim.nesterov=true", "optim.schedule=cosine"],
        "adam": ["optim=adam", "optim.lr=0.004", "optim.schedule=cosine", "optim.warmup_steps=100"],
        "adamw": ["optim=adamw", "optim.lr=0.003", "optim.beta2=0.99", "optim.schedule=constant"],
        "rmsprop": ["optim=rmsprop", "optim.lr=0.002", "optim.decay_at=0.7"],
    },
}
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "tuning": {"layers": (1, 2, 3, 5), "widths": (50, 80), "single": (100,), "batches": (16, 32, 64)},
    "reporting": {"layers": (1, 2, 3, 4), "widths": (60, 90), "single": (150,), "batches": (24, 48, 80)},
}
HEALTHY = {"tuning": 18, "reporting": 40}
EACH, PAIRED = {"tuning": 2, "reporting": 3}, {"tuning": 1, "reporting": 2}
"""Networks for each fault, and for each pair of faults."""
ACTIVATIONS = {"tuning": ("tanh", "tanh", "relu", "gelu"), "reporting": ("tanh", "tanh", "relu", "silu", "leaky_relu")}


@dataclass(frozen=True, slots=True)
class Network:
    """A healthy configuration."""

    placement: str
    layers: int
    activation: str
    optimizer: str
    batch_size: int
    overrides: tuple[str, ...]

    @property
    def plain(self) -> bool:
        """Without a normalisation between the layers."""
        return self.placement in ("none", "output")


@dataclass(frozen=True, slots=True)
class ConfigurationFault:
    """One way to configure it wrong."""

    name: str
    ids: tuple[str, ...]
    changes: tuple[str, ...]
    """Overrides in place of others; {} stands for the strength, *{} and /{} change the learning rate by that factor."""
    weakest: float
    strongest: float
    possible: Callable[[Network], bool] = lambda network: True

    def drawn(self, draw: random.Random) -> list[str]:
        strength = self.weakest * (self.strongest / self.weakest) ** draw.random()
        return [each.format(f"{strength:.3g}") for each in self.changes]


def _tanh(network: Network) -> bool:
    return network.plain and network.activation == "tanh"


def _sgd(network: Network) -> bool:
    return network.optimizer in ("sgd", "momentum")


FAULTS = [
    ConfigurationFault("gain too low", ("vanishing_activations", "vanishing_gradients"), ("model.gain={}",), 0.05, 0.6,
                       lambda net: _tanh(net) and net.layers > 2),
    ConfigurationFault("gain too high", ("saturation",), ("model.gain={}",), 2.5, 12, _tanh),
    ConfigurationFault("small weights", ("vanishing_activations", "vanishing_gradients"),
                       ("model.init=small", "model.gain={}"), 0.5, 2, lambda net: net.plain and net.layers > 1),
    ConfigurationFault("weights never scaled, tanh", ("saturation",),
                       ("model.init=normal", "model.gain={}", "model.hidden_bias=1"), 0.5, 2, _tanh),
    ConfigurationFault("weights never scaled", ("exploding_activations",),
                       ("model.init=normal", "model.gain={}"), 0.5, 2,
                       lambda net: net.plain and net.activation != "tanh" and net.layers > 1),
    ConfigurationFault("confident output", ("confident_start",),
                       ("model.output_scale={}", "model.output_bias=0.5"), 0.4, 4,
                       lambda net: "output" not in net.placement),
    ConfigurationFault("no activation", ("linear_network",), ("model.activation=identity",), 1, 1,
                       lambda net: net.layers > 1),
    ConfigurationFault("rate too low", ("update_too_small",), ("/{}",), 10, 1000),
    ConfigurationFault("rate too high", ("update_too_large",), ("*{}",), 20, 3000),
    ConfigurationFault("small batch", ("batchnorm_small_batch",), ("data.batch_size={}",), 2, 8,
                       lambda net: net.placement != "none"),
    ConfigurationFault("long memory", ("batchnorm_lag",), ("model.bn_momentum={}",), 1e-5, 2e-3,
                       lambda net: net.placement != "none"),
    ConfigurationFault("short memory", ("batchnorm_noise",), ("model.bn_momentum=1", "data.batch_size={}"), 12, 20,
                       lambda net: net.placement in ("pre", "pre_output")),
    ConfigurationFault("clipped too low", ("clipping",), ("trainer.gradient_clip_val={}",), 3e-3, 0.2, _sgd),
    ConfigurationFault("too much decay", ("overregularized",), ("optim.weight_decay={}",), 0.02, 0.5,
                       lambda net: net.optimizer != "adamw"),
    ConfigurationFault("too much dropout", ("overregularized",), ("model.dropout={}",), 0.45, 0.9),
    ConfigurationFault("momentum kept with the rate of none", ("update_too_large",),
                       ("optim.momentum={}", "*10"), 0.95, 0.99, _sgd),
]  # fmt: skip
BY_NAME = {each.name: each for each in FAULTS}
PAIRS = [
    ("confident output", "rate too low"),
    ("confident output", "gain too high"),
    ("confident output", "no activation"),
    ("no activation", "rate too low"),
    ("long memory", "rate too low"),
    ("small batch", "too much dropout"),
]
"""None of which follows from the other."""


def draw_network(half: str, draw: random.Random) -> Network:
    sizes = SIZES[half]
    layers = draw.choice(sizes["layers"])
    placement = draw.choice(("none", "none", "pre", "post", "output", "pre_output"))
    activation = draw.choice(ACTIVATIONS[half])
    optimizer = draw.choice(list(OPTIMIZERS[half]))
    batch_size = draw.choice(sizes["batches"])
    overrides = [
        f"model.batchnorm={placement}",
        f"model.n_layers={layers}",
        f"model.n_hidden={draw.choice(sizes['single' if layers == 1 else 'widths'])}",
        f"model.activation={activation}",
        f"model.init={draw.choice(('kaiming', 'xavier'))}",
        f"data.batch_size={batch_size}",
        *OPTIMIZERS[half][optimizer],
        *(["model.output_scale=0.1"] if "output" in placement else []),
    ]
    return Network(placement, layers, activation, optimizer, batch_size, tuple(overrides))


def spoiled(overrides: tuple[str, ...], changes: list[str]) -> tuple[str, ...]:
    """With changes in place of what they replace; `*30` and `/30` change the learning rate by a factor."""
    new = {change.partition("=")[0]: change for change in changes if "=" in change}
    if "data.batch_size" in new:
        key, _, value = new["data.batch_size"].partition("=")
        new[key] = f"{key}={round(float(value))}"
    factor = 1.0
    for change in changes:
        if "=" not in change:
            factor *= float(change[1:]) ** (1 if change[0] == "*" else -1)
    kept = [each for each in overrides if each.partition("=")[0] not in new]
    rated = [
        f"optim.lr={float(each.partition('=')[2]) * factor:.6g}" if each.startswith("optim.lr=") else each
        for each in kept
    ]
    return (*rated, *new.values())


def configurations(half: str) -> list[Case]:
    """Healthy networks of a half, and each fault and each pair of faults in some of them."""
    draw = random.Random(f"configurations, {DRAW[half]}")
    networks = [draw_network(half, draw) for _ in range(HEALTHY[half])]
    cases = [
        Case(_name(place), "configuration", half, partial(train, net.overrides)) for place, net in enumerate(networks)
    ]
    chosen = [((fault.name,), EACH[half]) for fault in FAULTS] + [(pair, PAIRED[half]) for pair in PAIRS]
    for names, count in chosen:
        faults = [BY_NAME[name] for name in names]
        fitting = [place for place, net in enumerate(networks) if all(fault.possible(net) for fault in faults)]
        for place in draw.sample(fitting, min(count, len(fitting))):
            changes = [change for fault in faults for change in fault.drawn(draw)]
            cases.append(
                Case(
                    f"{_name(place)}, {' and '.join(names)}: {' '.join(changes)}",
                    "configuration",
                    half,
                    partial(train, spoiled(networks[place].overrides, changes)),
                    names,
                    tuple(frozenset(fault.ids) for fault in faults),
                    _name(place),
                )
            )
    return cases


def _name(place: int) -> str:
    return f"configuration {place}"


def train(overrides: tuple[str, ...], seed: int, watched: bool) -> Outcome:
    """One short training of this project."""
    import hydra

    from makemore_pl import checkup
    from makemore_pl.command_line import typed
    from makemore_pl.config import resolve
    from makemore_pl.doctor.recorded_run import read_evidence

    with TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        measured = NO_PICTURES if watched else ["callbacks=none", "logger=none"]
        settings = [*checkup.QUICK, *STEPS, *measured, *overrides, f"seed={seed}", f"run_dir={typed(str(run_dir))}"]
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = resolve(hydra.compose("train", overrides=settings))
        loss = checkup.trained(config)
        if not watched:
            return Outcome(loss, None, None)
        evidence, _ = read_evidence(run_dir)
    return Outcome(loss, evidence.facts.constant_guess, judge(evidence))
