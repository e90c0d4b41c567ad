"""Modules of the reporting half on tables: activations as functions, steps by hand, blocks in a list, two heads."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.doctor.learner import Learner, ending, loss, softmax_in_network
from benchmarks.doctor.module_faults import spoil_weights
from benchmarks.doctor.recipe import FUNCTIONS, Recipe
from benchmarks.doctor.reporting_data import Data


class FunctionalNet(Learner):
    """Layers as attributes, activations as functions, several tasks."""

    def __init__(self, recipe: Recipe, inputs: int, outputs: int) -> None:
        super().__init__(recipe)
        self.fc1 = nn.Linear(inputs, recipe.width)
        self.middle = nn.ModuleList(nn.Linear(recipe.width, recipe.width) for _ in range(recipe.depth - 1))
        self.out = nn.Linear(recipe.width, outputs)
        self.f = FUNCTIONS[recipe.layer]
        spoil_weights(recipe, self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.f(self.fc1(x))
        for fc in self.middle:
            x = F.dropout(self.f(fc(x)), self.recipe.dropped, self.training)
        if self.recipe.has("detached"):
            x = x.data
        y: Tensor = self.out(x)
        if self.recipe.has("relu at the output"):
            y = F.relu(y)
        if self.recipe.has("sigmoid at the output"):
            y = torch.sigmoid(y)
        if softmax_in_network(self.recipe):
            y = F.softmax(y, dim=-1)
        return y.squeeze(-1) if self.recipe.task == "binary" else y

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        x, y = batch
        return loss(self.recipe, self(x), y)

    def validation_step(self, batch: Data, batch_idx: int) -> Tensor:
        x, y = batch
        value = loss(self.recipe, self(x), y)
        self.log("valid_loss", value)
        return value


class HandDriven(FunctionalNet):
    """The same, stepped by hand."""

    def __init__(self, recipe: Recipe, inputs: int, outputs: int) -> None:
        super().__init__(recipe, inputs, outputs)
        self.automatic_optimization = False

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        x, y = batch
        opt: Any = self.optimizers()
        value = loss(self.recipe, self(x), y)
        if not self.recipe.has("never zeroed"):
            opt.zero_grad()
        self.manual_backward(value)
        opt.step()
        return value


class BatchNormRegressor(Learner):
    """Blocks in a list, with BatchNorm or LayerNorm; a loss made of differences; a cosine schedule by epoch."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        sizes = [8, *[recipe.width] * recipe.depth]
        self.blocks = nn.ModuleList(self._block(a, b) for a, b in pairwise(sizes))
        self.readout = nn.Sequential(nn.Linear(recipe.width, 1), *ending(recipe))
        spoil_weights(recipe, self)

    def _block(self, a: int, b: int) -> nn.Sequential:
        recipe = self.recipe
        bias = not recipe.norm or recipe.has("bias before batchnorm")
        norm = nn.BatchNorm1d(b, momentum=recipe.memory) if recipe.norm else nn.LayerNorm(b)
        return nn.Sequential(nn.Linear(a, b, bias=bias), norm, recipe.layer(), nn.Dropout(recipe.dropped))

    def forward(self, features: Tensor) -> Tensor:
        h = features
        for place, block in enumerate(self.blocks):
            h = block(h)
            if place == 0 and len(self.blocks) > 1 and self.recipe.has("detached"):
                h = h.detach()
        y: Tensor = self.readout(h)
        return y

    def _loss(self, batch: Data) -> Tensor:
        squares = (self(batch[0]) - batch[1]).pow(2)
        return squares.sum() if self.recipe.has("sum for mean") else squares.mean()

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer_of(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)]


class TwoHeads(Learner):
    """A class and a number from one trunk, whose losses are added."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        layers: list[nn.Module] = [nn.Linear(7, recipe.width), recipe.layer()]
        for _ in range(recipe.depth - 1):
            layers += [nn.Linear(recipe.width, recipe.width), recipe.layer()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({"number": nn.Linear(recipe.width, 1), "class": nn.Linear(recipe.width, 3)})
        spoil_weights(recipe, self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        h = h.detach() if self.recipe.has("detached") else h
        return self.heads["class"](h), self.heads["number"](h)[:, 0]

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits, number = self(x)
        return F.cross_entropy(logits, y[:, 0].long()), F.mse_loss(number, y[:, 1])

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        ce, mse = self.losses(*batch)
        return ce + mse

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val_loss", sum(self.losses(*batch)))

    def harm(self, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        shares = y[:, 0].long().bincount().double()
        guess = torch.distributions.Categorical(shares).entropy() + y[:, 1].var()
        return float(sum(self.losses(x, y))), float(guess)
