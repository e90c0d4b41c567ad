"""Convolutional modules of the reporting half: pictures with shortcuts, and signals over time."""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.doctor.learner import Criterion, Learner, ending
from benchmarks.doctor.module_faults import spoil_weights
from benchmarks.doctor.recipe import Recipe
from benchmarks.doctor.reporting_data import Data


class ResidualNet(Learner):
    """Convolutions with shortcuts; a criterion, a schedule by step."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width // 3
        bias = not recipe.norm or recipe.has("bias before batchnorm")
        self.stem = nn.Conv2d(3, width, 3, padding=1, stride=2, bias=bias)
        self.stem_norm = self._norm(width)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=bias) for _ in range(recipe.depth - 1))
        self.norms = nn.ModuleList(self._norm(width) for _ in self.convs)
        self.act = recipe.layer()
        self.drop = nn.Dropout(recipe.dropped)
        self.fc = nn.Linear(width, 6)
        self.criterion = Criterion(recipe)
        spoil_weights(recipe, self)

    def _norm(self, width: int) -> nn.Module:
        return nn.BatchNorm2d(width, momentum=self.recipe.memory) if self.recipe.norm else nn.GroupNorm(1, width)

    def forward(self, img: Tensor) -> Tensor:
        h = self.act(self.stem_norm(self.stem(img)))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = h + self.act(norm(conv(h)))
        h = h.mean(dim=(2, 3))
        if self.recipe.has("detached"):
            h = h.detach()
        out: Tensor = self.fc(self.drop(h))
        for module in ending(self.recipe):
            out = module(out)
        return out

    def training_step(self, batch: Data, batch_idx: int) -> dict[str, Tensor]:
        img, label = batch
        value = self.criterion(self(img), label)
        self.log("train_loss", value)
        return {"loss": value}

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val/loss", self.criterion(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer_of(self.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Conv1dNet(Learner):
    """Convolutions over time, BatchNorm, and a head of two layers."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width // 2
        bias = not recipe.norm or recipe.has("bias before batchnorm")
        stages: list[nn.Module] = []
        for place in range(recipe.depth - 1):
            stages.append(nn.Conv1d(width if place else 2, width, 5, padding=2, bias=bias))
            stages += [nn.BatchNorm1d(width, momentum=recipe.memory)] if recipe.norm else []
            stages += [recipe.layer(), nn.AvgPool1d(2) if place == 0 else nn.Identity()]
        self.features = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.Linear(width * 12, width),
            recipe.layer(),
            nn.Dropout(recipe.dropped),
            nn.Linear(width, 4),
            *ending(recipe),
        )
        self.loss_fn = Criterion(recipe)
        spoil_weights(recipe, self)

    def forward(self, signal: Tensor) -> Tensor:
        h = self.features(signal).flatten(1)
        y: Tensor = self.head(h.detach() if self.recipe.has("detached") else h)
        return y

    def step(self, batch: Data, stage: str) -> Tensor:
        signal, label = batch
        value: Tensor = self.loss_fn(self(signal), label)
        self.log(f"{stage}_loss", value)
        return value

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Data, batch_idx: int) -> Tensor:
        return self.step(batch, "val")
