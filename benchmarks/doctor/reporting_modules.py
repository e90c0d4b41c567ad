"""Modules of the reporting half, in several styles, with their data and what each can have wrong."""

import random
from collections.abc import Callable

from benchmarks.doctor import reporting_data
from benchmarks.doctor.learner import Learner
from benchmarks.doctor.recipe import Recipe
from benchmarks.doctor.reporting_convolutions import Conv1dNet, ResidualNet
from benchmarks.doctor.reporting_data import Data
from benchmarks.doctor.reporting_generators import GAN, Autoencoder
from benchmarks.doctor.reporting_sequences import LetterModel, SumLSTM
from benchmarks.doctor.reporting_tables import BatchNormRegressor, FunctionalNet, HandDriven, TwoHeads

RATES = {"adam": 3e-3, "adamw": 3e-3, "sgd": 0.1, "momentum": 0.02}
MAKERS: dict[str, Callable[[Recipe], Learner]] = {
    "residual cnn": ResidualNet,
    "functional classifier": lambda recipe: FunctionalNet(recipe, 2, 8),
    "functional binary classifier": lambda recipe: FunctionalNet(recipe, 6, 1),
    "regression by hand": lambda recipe: HandDriven(recipe, 8, 1),
    "normalised regression": BatchNormRegressor,
    "convolutions over time": Conv1dNet,
    "lstm": SumLSTM,
    "language model": LetterModel,
    "autoencoder": Autoencoder,
    "gan": GAN,
    "two heads": TwoHeads,
}
DATA: dict[str, Callable[[int, int], Data]] = {
    "residual cnn": reporting_data.bars,
    "functional classifier": reporting_data.circle,
    "functional binary classifier": reporting_data.rings,
    "regression by hand": reporting_data.friedman,
    "normalised regression": reporting_data.friedman,
    "convolutions over time": reporting_data.tones,
    "lstm": reporting_data.sums,
    "language model": reporting_data.chains,
    "autoencoder": reporting_data.surface,
    "gan": reporting_data.circle,
    "two heads": reporting_data.two_answers,
}
SUPERVISED = {"supervised", "automatic"}
TRAITS = {
    "residual cnn": SUPERVISED | {"float", "dropout"},
    "functional classifier": SUPERVISED
    | {"float", "unnormalised", "table", "feedforward", "nonlinear", "plain", "dying"},
    "functional binary classifier": SUPERVISED
    | {"float", "unnormalised", "table", "feedforward", "nonlinear", "plain", "dying"},
    "regression by hand": {
        "supervised",
        "float",
        "unnormalised",
        "table",
        "feedforward",
        "nonlinear",
        "plain",
        "dying",
    },
    "normalised regression": SUPERVISED | {"float", "table", "feedforward", "nonlinear", "dropout"},
    "convolutions over time": SUPERVISED | {"float", "unnormalised", "feedforward", "dropout"},
    "lstm": SUPERVISED | {"float", "unnormalised", "mixable"},
    "language model": {"automatic", "mixable", "supervised", "dropout"},
    "autoencoder": {"automatic", "float", "unnormalised", "table", "feedforward"},
    "gan": {"float", "unnormalised"},
    "two heads": SUPERVISED | {"float", "unnormalised", "table", "feedforward", "nonlinear", "plain"},
}
"""What each can have wrong, beside BatchNorm's own faults."""
TASKS = {
    "functional binary classifier": "binary", "regression by hand": "regression", "normalised regression": "regression",
    "lstm": "regression", "autoencoder": "own", "gan": "own", "two heads": "own",
}  # fmt: skip


def make(recipe: Recipe) -> Learner:
    return MAKERS[recipe.family](recipe)


def draw_recipe(family: str, draw: random.Random) -> Recipe:
    """A healthy training."""
    adaptive = family in ("language model", "lstm", "gan", "autoencoder")
    optimizer = "adam" if adaptive else draw.choice(list(RATES))
    norm = family in ("normalised regression", "convolutions over time", "residual cnn") and draw.random() < 0.7
    depth = 1 if family in ("lstm", "language model") else draw.choice((2, 3, 4))
    activation = draw.choice(("relu", "gelu", "silu", "leaky_relu", "tanh", "tanh"))
    traits = TRAITS[family] | {"detachable"}
    traits |= {"batchnorm"} if norm else {"plain"} if family == "convolutions over time" else set()
    traits |= {"flat batchnorm"} if norm and family == "normalised regression" else set()
    rate = RATES[optimizer] * draw.choice((0.6, 1, 1.4)) * (0.5 if family in ("gan", "autoencoder") else 1)
    return Recipe(
        family, TASKS.get(family, "classes"), draw.choice((24, 32, 40)), depth, activation, optimizer, rate,
        draw.choice((20, 32, 50)), norm, draw.choice((0.0, 0.1)) if "dropout" in traits else 0.0, frozenset(traits),
    )  # fmt: skip
