"""Modules of the tuning half in other manners: activations as functions, several losses, manual optimization."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.learner import Learner, ending, loss
from benchmarks.doctor.module_faults import spoil_weights
from benchmarks.doctor.recipe import FUNCTIONS, Recipe

Data = tuple[Tensor, Tensor]


class Stranger(Learner):
    """A network that is written in its forward pass."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.f = FUNCTIONS[recipe.layer]
        self.build(recipe.width)
        self.end = nn.Sequential(*ending(recipe))
        spoil_weights(recipe, self)

    def build(self, width: int) -> None:
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(self.features(x), self.recipe.dropped, self.training)
        y: Tensor = self.end(self.head(x.detach() if self.recipe.has("detached") else x))
        return y

    def training_step(self, batch: Data, batch_idx: int) -> Tensor | None:
        return loss(self.recipe, self(batch[0]), batch[1])

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val_loss", loss(self.recipe, self(batch[0]), batch[1]))


class Convolutions(Stranger):
    """Two convolutions, pooling and a hidden layer."""

    def build(self, width: int) -> None:
        self.one, self.two = nn.Conv2d(1, width // 2, 3, padding=1), nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.flat, self.head = nn.Linear(8 * width, width), nn.Linear(width, 4)

    def features(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.f(self.two(self.f(self.one(x)))), 2)
        return self.f(self.flat(x.flatten(1)))


class NormalisedRows(Stranger):
    """A residual network over rows, with LayerNorm in front of each block."""

    def build(self, width: int) -> None:
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(self.recipe.depth))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(self.recipe.depth))

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + self.f(layer(norm(x)))
        return x


class PlainRows(Stranger):
    """Layers in a list, and one activation function for all."""

    def build(self, width: int) -> None:
        sizes = [6, *[width] * self.recipe.depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, 1)

    def features(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.f(layer(x))
        return x


class LSTMReader(Stranger):
    """An embedding and an LSTM, whose outputs are averaged."""

    def build(self, width: int) -> None:
        self.embedding, self.cells = nn.Embedding(12, width), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.cells(self.embedding(x))[0].mean(1)  # type: ignore[no-any-return]


class AttentionReader(Stranger):
    """One block of attention and a feed-forward network, by hand."""

    def build(self, width: int) -> None:
        width = width // 4 * 4
        self.embedding, self.position = nn.Embedding(12, width), nn.Parameter(0.02 * torch.randn(8, width))
        self.attention, self.norm = nn.MultiheadAttention(width, 4, batch_first=True), nn.LayerNorm(width)
        self.up, self.down, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Linear(width, 4)

    def features(self, x: Tensor) -> Tensor:
        x = self.embedding(x) + self.position
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return (x + self.down(self.f(self.up(x)))).mean(1)  # type: ignore[no-any-return]


class Variational(Stranger):
    """A variational autoencoder: reconstruction and divergence, summed over pixels."""

    def build(self, width: int) -> None:
        self.encoder, self.mean, self.spread = nn.Linear(64, width), nn.Linear(width, 4), nn.Linear(width, 4)
        self.decoder, self.head = nn.Linear(4, width), nn.Linear(width, 64)

    def _loss(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        hidden = self.f(self.encoder(x))
        mean, spread = self.mean(hidden), self.spread(hidden)
        z = mean + (0.5 * spread).exp() * torch.randn_like(mean) if self.training else mean
        divergence = 0.5 * (mean.square() + spread.exp() - spread - 1).sum(1)
        again = self.head(self.f(self.decoder(z)))
        return ((again - x).square().sum(1) + divergence).mean()

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        return self._loss(batch[0])

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch[0]))

    def harm(self, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        return float(self._loss(x)) / 64, float(x.var())


class Alternating(PlainRows):
    """Manual optimization: the head and what is before it have an optimizer each, which take turns in a batch."""

    steps_a_batch = 2

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.automatic_optimization = False

    def training_step(self, batch: Data, batch_idx: int) -> None:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            if not self.recipe.has("never zeroed"):
                optimizer.zero_grad()
            self.manual_backward(loss(self.recipe, self(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.recipe.optimizer_of(each.parameters()) for each in (self.layers, self.head)]


STRANGERS: dict[str, Callable[[Recipe], Learner]] = {
    "functional cnn": Convolutions,
    "residual rows": NormalisedRows,
    "functional rows": PlainRows,
    "lstm over tokens": LSTMReader,
    "attention by hand": AttentionReader,
    "variational pictures": Variational,
    "optimizers in turn": Alternating,
}
