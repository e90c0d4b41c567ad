"""Modules of the reporting half, written as others write them, with their data and what each can have wrong."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.doctor import reporting_data as data
from benchmarks.doctor.learner import Learner
from benchmarks.doctor.recipe import Recipe
from benchmarks.doctor.reporting_data import Data
from benchmarks.doctor.reporting_generators import VAE, Denoiser, LeastSquaresGAN
from benchmarks.doctor.reporting_pictures import MobileNet, UNet, VisionTransformer
from benchmarks.doctor.reporting_relations import GraphNet, Siamese
from benchmarks.doctor.reporting_sequences import GPT, Forecaster, PackedGRU
from benchmarks.doctor.reporting_tables import ActorCritic, CustomerNet, Recommender, SensorNet

RATES = {
    "adam": 3e-3, "adamw": 3e-3, "nadam": 2e-3, "rmsprop": 1e-3, "sgd": 0.1, "momentum": 0.03, "nesterov": 0.03,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """One LightningModule, with what may be drawn for it."""

    make: Callable[[Recipe], Learner]
    data: Callable[[int, int], Data]
    task: str
    optimizers: str
    depths: tuple[int, ...]
    traits: str
    """Of the module without a norm that is drawn."""
    normed: float = 0.0
    """Chance of BatchNorm where it can be left out."""
    faster: float = 1.0
    """Factor for the rate."""


FAMILIES = {
    "mobile net": Family(
        MobileNet, data.shapes, "classes", "adam adamw momentum nesterov", (1, 2),
        "supervised automatic float dropout feedforward nonlinear", 1, 2,
    ),
    "u-net": Family(
        UNet, data.outlines, "binary", "adam nadam momentum rmsprop", (4,),
        "supervised automatic float unnormalised feedforward",
    ),
    "vision transformer": Family(
        VisionTransformer, data.stamps, "classes", "adam adamw nadam", (1, 2),
        "supervised automatic float dropout mixable",
    ),
    "gpt": Family(
        GPT, data.dialects, "classes", "adam adamw", (1, 2), "supervised automatic dropout mixable",
    ),
    "packed gru": Family(
        PackedGRU, data.reviews, "classes", "adam rmsprop nadam", (1,), "supervised automatic dropout mixable",
    ),
    "forecaster": Family(
        Forecaster, data.pendulums, "regression", "adam adamw rmsprop", (1,),
        "supervised automatic float unnormalised mixable",
    ),
    "sensors": Family(
        SensorNet, data.sensors, "regression", "adam sgd momentum nesterov", (2, 3, 4),
        "supervised automatic float feedforward nonlinear plain dying batchnorm flat",
    ),
    "customers": Family(
        CustomerNet, data.customers, "classes", "adam nadam sgd momentum", (2, 3, 4),
        "supervised automatic float unnormalised table feedforward nonlinear plain dying dropout flat", 0.5, 1.5,
    ),
    "recommender": Family(
        Recommender, data.ratings, "regression", "adam adamw rmsprop", (1,), "supervised automatic", faster=5,
    ),
    "actor-critic": Family(
        ActorCritic, data.states, "own", "adam adamw momentum", (2, 3, 4),
        "supervised float unnormalised table feedforward nonlinear plain dying",
    ),
    "denoiser": Family(
        Denoiser, data.steps, "regression", "adam adamw momentum nesterov", (2, 3, 4),
        "supervised automatic float unnormalised feedforward plain dying", 0.5,
    ),
    "vae": Family(VAE, data.bumps, "own", "adam adamw", (4,), "automatic float feedforward"),
    "siamese": Family(
        Siamese, data.views, "own", "adam adamw rmsprop nesterov", (2, 3),
        "automatic float feedforward nonlinear flat", 0.6,
    ),
    "graph": Family(
        GraphNet, data.molecules, "classes", "adam adamw nadam", (2, 3, 4),
        "supervised automatic float feedforward nonlinear plain dropout", faster=2,
    ),
    "least squares gan": Family(LeastSquaresGAN, data.moons, "own", "adam", (2,), "float", faster=0.5),
}  # fmt: skip
DATA = {name: family.data for name, family in FAMILIES.items()}


def make(recipe: Recipe) -> Learner:
    return FAMILIES[recipe.family].make(recipe)


def draw_recipe(name: str, draw: random.Random) -> Recipe:
    """A healthy training."""
    family = FAMILIES[name]
    optimizer, depth = draw.choice(family.optimizers.split()), draw.choice(family.depths)
    norm = draw.random() < family.normed
    activation = draw.choice(("relu", "relu", "tanh", "tanh", "gelu", "silu", "leaky_relu"))
    traits = set(family.traits.split())
    if name not in ("vae", "least squares gan"):  # whose other losses reach every parameter
        traits.add("detachable")
    if norm:
        traits = traits - {"plain", "dying"} | {"batchnorm"}
    if {"flat", "batchnorm"} <= traits:
        traits.add("flat batchnorm")
    rate = RATES[optimizer] * family.faster * draw.choice((0.7, 1, 1.3))
    dropout = draw.choice((0.0, 0.1, 0.2)) if "dropout" in traits else 0.0
    return Recipe(
        name, family.task, draw.choice((32, 40, 48)), depth, activation, optimizer, rate, draw.choice((16, 24, 40)),
        norm, dropout, frozenset(traits),
    )  # fmt: skip
