"""Modules of the tuning half in one style, a Sequential and the loss as a function, and the table of all of them."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.doctor.learner import Learner, ending, loss
from benchmarks.doctor.module_faults import spoil_weights
from benchmarks.doctor.recipe import Recipe
from benchmarks.doctor.tuning_data import Data, clouds, pictures, sequences, tokens, waves
from benchmarks.doctor.tuning_strangers import STRANGERS

RATES = {"adam": 3e-3, "adamw": 3e-3, "sgd": 0.1, "momentum": 0.02}


class SequentialLearner(Learner):
    """Any of the networks below."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.net = NETWORKS[recipe.family](recipe)
        spoil_weights(recipe, self.net)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net[-1](self.net[:-1](x).detach()) if self.recipe.has("detached") else self.net(x)
        return y

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        return loss(self.recipe, self(batch[0]), batch[1])

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val_loss", loss(self.recipe, self(batch[0]), batch[1]))


def _normalised(
    recipe: Recipe, layer: Callable[..., nn.Module], *sizes: int, norm: type[nn.Module], **options: Any
) -> list[nn.Module]:
    """A layer, BatchNorm where the recipe has it, and its activation."""
    bias = not recipe.norm or recipe.has("bias before batchnorm")
    after = [norm(sizes[1], momentum=recipe.memory)] if recipe.norm else []
    return [layer(*sizes, bias=bias, **options), *after, recipe.layer()]


def mlp(recipe: Recipe, inputs: int, outputs: int) -> nn.Sequential:
    sizes = [inputs, *[recipe.width] * recipe.depth]
    hidden: list[nn.Module] = []
    for a, b in pairwise(sizes):
        hidden += _normalised(recipe, nn.Linear, a, b, norm=nn.BatchNorm1d)
        hidden += [nn.Dropout(recipe.dropped)] if recipe.dropped else []
    return nn.Sequential(*hidden, nn.Linear(recipe.width, outputs), *ending(recipe))


def cnn(recipe: Recipe) -> nn.Sequential:
    sizes = [1, *[recipe.width // 2] * recipe.depth]
    hidden: list[nn.Module] = []
    for place, (a, b) in enumerate(pairwise(sizes)):
        hidden += _normalised(recipe, nn.Conv2d, a, b, 3, norm=nn.BatchNorm2d, padding=1)
        hidden += [nn.MaxPool2d(2)] if place == 0 else []
    hidden += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    hidden += [nn.Dropout(recipe.dropped)] if recipe.dropped else []
    return nn.Sequential(*hidden, nn.Linear(4 * sizes[-1], 4), *ending(recipe))


class TimeFirst(nn.Module):
    """(B, T, C) to (T, B, C), by a view where that slip is made."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[1], x.shape[0], x.shape[2]) if self.view else x.transpose(0, 1)


class LastOutput(nn.Module):
    """A recurrent network's output after the last step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)[0][-1]
        return y


def gru(recipe: Recipe) -> nn.Sequential:
    first = TimeFirst(recipe.has("examples mixed")), LastOutput(nn.GRU(5, recipe.width, recipe.depth))
    dropout = [nn.Dropout(recipe.dropped)] if recipe.dropped else []
    return nn.Sequential(*first, *dropout, nn.Linear(recipe.width, 3), *ending(recipe))


class Attention(nn.Module):
    """A transformer's encoder over tokens, averaged over positions."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width // 8 * 8
        self.embedding, self.position = nn.Embedding(12, width), nn.Parameter(0.02 * torch.randn(8, width))
        batch_first = not recipe.has("examples mixed")
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=recipe.dropped, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, recipe.depth, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.encoder(self.embedding(x) + self.position).mean(1)
        return y


def transformer(recipe: Recipe) -> nn.Sequential:
    return nn.Sequential(Attention(recipe), nn.Linear(recipe.width // 8 * 8, 4), *ending(recipe))


NETWORKS: dict[str, Callable[[Recipe], nn.Sequential]] = {
    "mlp on waves": lambda recipe: mlp(recipe, 6, 1),
    "mlp on clouds": lambda recipe: mlp(recipe, 10, 5),
    "cnn": cnn,
    "gru": gru,
    "transformer": transformer,
}
DATA: dict[str, Callable[[int, int], Data]] = {
    "mlp on waves": waves, "mlp on clouds": clouds, "cnn": pictures, "gru": sequences, "transformer": tokens,
    "functional cnn": pictures, "residual rows": waves, "functional rows": waves, "lstm over tokens": tokens,
    "attention by hand": tokens, "variational pictures": pictures, "optimizers in turn": waves,
}  # fmt: skip
READERS = ("transformer", "lstm over tokens", "attention by hand")


def make(recipe: Recipe) -> Learner:
    return STRANGERS.get(recipe.family, SequentialLearner)(recipe)


def _draw_stranger(family: str, draw: random.Random) -> Recipe:
    rows, own = DATA[family] is waves, family == "variational pictures"
    optimizer = draw.choice(["sgd", "adam", "momentum"] if rows or family == "functional cnn" else ["adam", "adamw"])
    plain = family in ("functional cnn", "functional rows")
    traits = {"supervised"} if not own else set()
    traits |= {"automatic"} if family != "optimizers in turn" else set()
    traits |= {"float", "unnormalised"} if family not in READERS else set()
    traits |= {"feedforward", "plain", "dying", "detachable"} if plain else set()
    traits |= {"table"} if rows else {"dropout"} if not own else set()
    rate = RATES[optimizer] * draw.choice((0.5, 1)) * (0.5 if own or family == "residual rows" else 1)
    return Recipe(
        family, "own" if own else "regression" if rows else "classes", draw.choice((24, 32, 48)), 3 if plain else 2,
        draw.choice(("relu", "relu", "gelu", "tanh")), optimizer, rate, draw.choice((16, 32, 64)),
        traits=frozenset(traits),
    )  # fmt: skip


def draw_recipe(family: str, draw: random.Random) -> Recipe:
    """A healthy training."""
    if family in STRANGERS:
        return _draw_stranger(family, draw)
    optimizer = "adam" if family in ("gru", "transformer") else draw.choice(list(RATES))
    feedforward = family.startswith("mlp") or family == "cnn"
    norm = feedforward and draw.random() < 0.5
    depth = draw.choice((2, 3, 4)) if feedforward else 1 if family == "gru" else draw.choice((1, 2))
    activation = draw.choice(("relu", "relu", "tanh", "elu"))
    dropout = draw.choice((0.0, 0.1)) if family != "mlp on waves" else 0.0
    traits = {"supervised", "automatic", "dropout"}
    traits |= {"float", "unnormalised"} if family != "transformer" else set()
    traits |= {"table"} if family.startswith("mlp") else set()
    traits |= {"feedforward", "nonlinear"} if feedforward else {"mixable"}
    traits |= {"batchnorm"} if norm else {"plain", "dying"} if feedforward else set()
    traits |= {"flat batchnorm"} if norm and family.startswith("mlp") else set()
    rate = RATES[optimizer] * draw.choice((0.5, 1, 1.5))
    rate *= 0.5 if family == "transformer" else 1
    width = draw.choice((24, 32, 48, 64) if feedforward else (16, 24))
    return Recipe(
        family, "regression" if family == "mlp on waves" else "classes", width, depth, activation,
        optimizer, rate, draw.choice((16, 32, 64)), norm, dropout, frozenset(traits | {"detachable"}),
    )  # fmt: skip
