"""Modules of the reporting half on tables: sensors in their units, customers, films that were rated, and a policy."""

from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.doctor.learner import Learner, ending, loss
from benchmarks.doctor.module_faults import spoil_weights
from benchmarks.doctor.recipe import FUNCTIONS, Recipe
from benchmarks.doctor.reporting_data import Data


class SensorNet(Learner):
    """Three heads over one trunk; BatchNorm brings kelvin and pascal to one scale."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        sizes = [6, *[recipe.width] * recipe.depth]
        self.scale = nn.BatchNorm1d(6, momentum=recipe.memory)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.heads = nn.ModuleList(nn.Linear(recipe.width, 1) for _ in range(3))
        spoil_weights(recipe, nn.ModuleList([*self.layers, self.heads[0]]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale(x)
        for layer in self.layers:
            x = FUNCTIONS[self.recipe.layer](layer(x))
        if self.recipe.has("detached"):
            x = x.detach()
        y = torch.cat([head(x) for head in self.heads], dim=1)
        for last in ending(self.recipe):
            y = last(y)
        return y

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        value = loss(self.recipe, self(batch[0]), batch[1])
        self.log("mse/train", value, on_step=True, on_epoch=True)
        return value

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        y = self(batch[0])
        self.log("mse/val", loss(self.recipe, y, batch[1]))
        self.log("mae/val", (y - batch[1]).abs().mean())

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer_of(self.parameters())
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "mse/train_epoch"}}


class CustomerNet(Learner):
    """A classifier whose gradients are summed over two batches; the rate decays by epoch."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        modules: list[nn.Module] = []
        for a, b in pairwise([9, *[recipe.width] * recipe.depth]):
            modules.append(nn.Linear(a, b, bias=not recipe.norm or recipe.has("bias before batchnorm")))
            modules += [nn.BatchNorm1d(b, momentum=recipe.memory)] if recipe.norm else []
            modules += [recipe.layer(), nn.Dropout(recipe.dropped)]
        self.backbone = nn.Sequential(*modules)
        self.fc_out = nn.Linear(recipe.width, 4)
        self.last = nn.Sequential(*ending(recipe))
        spoil_weights(recipe, self)

    def configure_callbacks(self) -> Any:
        return GradientAccumulationScheduler({0: 2})

    def forward(self, x: Tensor) -> Tensor:
        h = self.backbone(x)
        logits: Tensor = self.last(self.fc_out(h.detach() if self.recipe.has("detached") else h))
        return logits

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        features, target = batch
        output = self(features)
        self.log("acc", (output.argmax(1) == target).float().mean(), prog_bar=True)
        return loss(self.recipe, output, target)

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("valid_loss", loss(self.recipe, self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer_of(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]


class Recommender(Learner):
    """Users times films, with a bias for each; no layer but embeddings."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.user_factors, self.film_factors = nn.Embedding(60, recipe.width // 4), nn.Embedding(40, recipe.width // 4)
        self.user_bias, self.film_bias = nn.Embedding(60, 1), nn.Embedding(40, 1)
        for factors in (self.user_factors, self.film_factors):
            nn.init.normal_(factors.weight, std=0.3)
        for bias in (self.user_bias, self.film_bias):
            nn.init.zeros_(bias.weight)

    def forward(self, pairs: Tensor) -> Tensor:
        user, film = pairs.unbind(1)
        factors = self.film_factors(film)
        if self.recipe.has("detached"):
            factors = factors.detach()
        dot = (self.user_factors(user) * factors).sum(1, keepdim=True)
        y: Tensor = dot + self.user_bias(user) + self.film_bias(film)
        for last in ending(self.recipe):
            y = last(y)
        return y

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        return loss(self.recipe, self(batch[0]), batch[1])

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("rmse", F.mse_loss(self(batch[0]), batch[1]).sqrt())


class ActorCritic(Learner):
    """Draws an action, is paid or not, and keeps some entropy; stepped by hand."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.automatic_optimization = False
        layers: list[nn.Module] = []
        for a, b in pairwise([6, *[recipe.width] * recipe.depth]):
            layers += [nn.Linear(a, b), recipe.layer()]
        self.body = nn.Sequential(*layers)
        self.critic, self.actor = nn.Linear(recipe.width, 1), nn.Linear(recipe.width, 4)
        spoil_weights(recipe, nn.ModuleList([self.body, self.actor]))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(obs)
        h = h.detach() if self.recipe.has("detached") else h
        return self.actor(h), self.critic(h)[:, 0]

    def training_step(self, batch: Data, batch_idx: int) -> None:
        obs, best = batch
        optimizer: Any = self.optimizers()
        logits, value = self(obs)
        policy = torch.distributions.Categorical(logits=logits, validate_args=False)
        action = policy.sample()
        reward = (action == best).float()
        policy_loss = -(policy.log_prob(action) * (reward - value.detach())).mean()
        total = policy_loss + 0.5 * F.mse_loss(value, reward) - 0.01 * policy.entropy().mean()
        if not self.recipe.has("never zeroed"):
            optimizer.zero_grad()
        self.manual_backward(total)
        optimizer.step()
        self.log_dict({"reward": reward.mean(), "entropy": policy.entropy().mean(), "loss/total": total})

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val_return", (self(batch[0])[0].argmax(1) == batch[1]).float().mean())

    def harm(self, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        """What is missed of the pay, beside what the best of four actions that is always taken misses."""
        chances = self(x)[0].softmax(1).gather(1, y[:, None])
        return float(1 - chances.mean()), float(1 - y.bincount().max() / len(y))
