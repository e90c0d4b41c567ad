"""Modules of the reporting half on what belongs together: two views of one thing, and atoms with their bonds."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.doctor.learner import Learner, ending, loss
from benchmarks.doctor.module_faults import spoil_weights
from benchmarks.doctor.recipe import FUNCTIONS, Recipe
from benchmarks.doctor.reporting_data import Data


class Siamese(Learner):
    """One encoder for both views; each is to find its other half among those of the batch, by their cosines."""

    temperature = 0.2

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        sizes = [16, *[recipe.width] * recipe.depth]
        self.encoder = nn.Sequential(*(self._block(a, b) for a, b in pairwise(sizes)))
        self.projector = nn.Linear(recipe.width, 8)
        spoil_weights(recipe, self)

    def _block(self, a: int, b: int) -> nn.Sequential:
        recipe = self.recipe
        bias = not recipe.norm or recipe.has("bias before batchnorm")
        norm = nn.BatchNorm1d(b, momentum=recipe.memory) if recipe.norm else nn.LayerNorm(b)
        return nn.Sequential(nn.Linear(a, b, bias=bias), norm, recipe.layer())

    def forward(self, view: Tensor) -> Tensor:
        h = self.encoder(view)
        return F.normalize(self.projector(h.detach() if self.recipe.has("detached") else h), dim=-1)

    def _contrast(self, pairs: Tensor) -> Tensor:
        similarity = self(pairs[:, 0]) @ self(pairs[:, 1]).T / self.temperature
        return F.cross_entropy(similarity, torch.arange(len(pairs)))

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        value = self._contrast(batch[0])
        self.log("train/info_nce", value)
        return value

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        parts = batch[0].split(self.recipe.batch_size)  # as many to tell apart as in training
        self.log("val/info_nce", torch.stack([self._contrast(each) for each in parts]).mean())

    def harm(self, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        parts = torch.stack([self._contrast(each) for each in x.split(32)])
        return float(parts.mean()), float(torch.tensor(32.0).log())


class GraphNet(Learner):
    """Messages along bonds by a product of matrices, then an average over atoms."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        sizes = [4, *[recipe.width] * recipe.depth]
        self.own = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.neighbours = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(recipe.dropped)
        self.readout = nn.Linear(recipe.width, 3)
        spoil_weights(recipe, self)

    def forward(self, graph: Tensor) -> Tensor:
        h, bonds = graph.split([4, 8], dim=2)
        bonds = bonds / bonds.sum(2, keepdim=True).clamp(min=1)
        for own, neighbours in zip(self.own, self.neighbours, strict=True):
            h = FUNCTIONS[self.recipe.layer](own(h) + torch.bmm(bonds, neighbours(h)))
        h = self.dropout(h.mean(dim=1))
        y: Tensor = self.readout(h.detach() if self.recipe.has("detached") else h)
        for last in ending(self.recipe):
            y = last(y)
        return y

    def training_step(self, batch: Data, batch_idx: int) -> dict[str, Any]:
        graph, label = batch
        y = self(graph)
        return {"loss": loss(self.recipe, y, label), "logits": y.detach(), "n": len(label)}

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val/objective", loss(self.recipe, self(batch[0]), batch[1]))
