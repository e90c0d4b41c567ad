"""Modules of the reporting half on pictures: a small MobileNet, a U-Net, and a vision transformer."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.doctor.learner import Criterion, Learner, ending, loss
from benchmarks.doctor.module_faults import spoil_weights
from benchmarks.doctor.recipe import FUNCTIONS, Recipe
from benchmarks.doctor.reporting_data import Data


class InvertedResidual(nn.Module):
    """Wider, over the neighbourhood, narrower, and added; activations as functions."""

    def __init__(self, width: int, recipe: Recipe) -> None:
        super().__init__()
        bias, wide = recipe.has("bias before batchnorm"), 2 * width
        self.expand, self.bn1 = nn.Conv2d(width, wide, 1, bias=bias), nn.BatchNorm2d(wide, momentum=recipe.memory)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=bias)
        self.bn2 = nn.BatchNorm2d(wide, momentum=recipe.memory)
        self.project, self.bn3 = nn.Conv2d(wide, width, 1, bias=bias), nn.BatchNorm2d(width, momentum=recipe.memory)
        self.act = FUNCTIONS[recipe.layer]

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.bn1(self.expand(x)))
        h = self.act(self.bn2(self.depthwise(h)))
        return x + self.bn3(self.project(h))


class MobileNet(Learner):
    """Classifies pictures; a rate that rises once and falls."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width // 2
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=recipe.has("bias before batchnorm"))
        self.bn1 = nn.BatchNorm2d(width, momentum=recipe.memory)
        self.blocks = nn.Sequential(*(InvertedResidual(width, recipe) for _ in range(recipe.depth)))
        self.dropout = nn.Dropout(recipe.dropped)
        self.classifier = nn.Linear(width, 5)
        self.criterion = Criterion(recipe)
        spoil_weights(recipe, self)

    def forward(self, x: Tensor) -> Tensor:
        x = FUNCTIONS[self.recipe.layer](self.bn1(self.conv1(x)))
        x = F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1)
        if self.recipe.has("detached"):
            x = x.detach()
        logits: Tensor = self.classifier(self.dropout(x))
        for last in ending(self.recipe):
            logits = last(logits)
        return logits

    def training_step(self, batch: Data, batch_idx: int) -> dict[str, Tensor]:
        images, labels = batch
        logits = self(images)
        value = self.criterion(logits, labels)
        self.log_dict({"train/ce": value, "train/top1": (logits.argmax(1) == labels).float().mean()})
        return {"loss": value}

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val/ce", self.criterion(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer_of(self.parameters())
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.recipe.rate, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class UNet(Learner):
    """Marks what lies inside, with a way down and one up and what is kept between them."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width // 6
        self.down1, self.down2 = self._double(1, width), self._double(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = self._double(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)
        spoil_weights(recipe, self)

    def _double(self, a: int, b: int) -> nn.Sequential:
        act = self.recipe.layer
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), act(), nn.Conv2d(b, b, 3, padding=1), act())

    def forward(self, image: Tensor) -> Tensor:
        kept = self.down1(image)
        h = self.up(self.down2(F.max_pool2d(kept, 2)))
        h = self.last(torch.cat([kept, h], dim=1))
        mask: Tensor = self.head(h.detach() if self.recipe.has("detached") else h)
        for last in ending(self.recipe):
            mask = last(mask)
        return mask

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        value = loss(self.recipe, self(batch[0]), batch[1])
        self.log("loss", value, prog_bar=True)
        return value

    def validation_step(self, batch: Data, batch_idx: int) -> dict[str, Tensor]:
        logits = self(batch[0])
        both = ((logits > 0) & (batch[1] > 0)).sum()
        self.log("val_iou", both / ((logits > 0) | (batch[1] > 0)).sum().clamp(min=1))
        return {"val_loss": loss(self.recipe, logits, batch[1])}


class VisionTransformer(Learner):
    """Patches, a class token, learned positions; warm-up and half a cosine."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width // 8 * 8
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.3 * torch.randn(1, 10, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, recipe.dropped, FUNCTIONS[recipe.layer], norm_first=True,
            batch_first=not recipe.has("examples mixed"),
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(layer, recipe.depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)
        spoil_weights(recipe, self)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1) + self.pos_embed
        cls = self.norm(self.encoder(tokens)[:, 0])
        y: Tensor = self.head(cls.detach() if self.recipe.has("detached") else cls)
        for last in ending(self.recipe):
            y = last(y)
        return y

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        return loss(self.recipe, self(batch[0]), batch[1])

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        y = self(batch[0])
        self.log("validation_accuracy", (y.argmax(-1) == batch[1]).float().mean())
        self.log("validation_loss", loss(self.recipe, y, batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer_of(self.parameters())
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / 30, 0.5 + 0.5 * math.cos(math.pi * min(1, step / total)))
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step", "name": "warmup_cosine"}]
