"""Modules of the reporting half that make examples: an autoencoder and two networks against each other."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.doctor.learner import Learner
from benchmarks.doctor.module_faults import spoil_weights
from benchmarks.doctor.recipe import Recipe
from benchmarks.doctor.reporting_data import Data


class Autoencoder(Learner):
    """Squeezes points through three numbers; where depth is odd with a penalty on them, a second term of its loss."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        inner = [nn.Linear(recipe.width, recipe.width), recipe.layer()] if recipe.depth > 2 else []
        outer = [nn.Linear(recipe.width, recipe.width), recipe.layer()] if recipe.depth > 2 else []
        self.encoder = nn.Sequential(nn.Linear(20, recipe.width), recipe.layer(), *inner, nn.Linear(recipe.width, 3))
        self.decoder = nn.Sequential(nn.Linear(3, recipe.width), recipe.layer(), *outer, nn.Linear(recipe.width, 20))
        spoil_weights(recipe, self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.decoder(z.detach() if self.recipe.has("detached") else z), z

    def loss(self, x: Tensor) -> Tensor:
        again, z = self(x)
        mse = F.mse_loss(again, x)
        return mse + 1e-3 * z.square().mean() if self.recipe.depth % 2 else mse

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        return self.loss(batch[0])

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch[0]))

    def harm(self, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        return float(F.mse_loss(self(x)[0], x) / x.var()), 1.0


class GAN(Learner):
    """Two networks against each other, with an optimizer each."""

    steps_a_batch = 2

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.automatic_optimization = False
        width = recipe.width
        self.generator = nn.Sequential(
            nn.Linear(6, width), recipe.layer(), nn.Linear(width, width), recipe.layer(), nn.Linear(width, 2)
        )
        self.discriminator = nn.Sequential(
            nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        y: Tensor = self.generator(z)
        return y

    def training_step(self, batch: Data, batch_idx: int) -> None:
        real, _ = batch
        first: Any
        second: Any
        first, second = self.optimizers()
        fake = self(torch.randn(len(real), 6))
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        score = F.binary_cross_entropy_with_logits
        d_loss = score(self.discriminator(real), ones) + score(self.discriminator(fake.detach()), zeros)
        self._step(second, d_loss)
        fooled = self.discriminator(fake.detach() if self.recipe.has("detached") else fake)
        self._step(first, score(fooled, ones))

    def _step(self, optimizer: Any, value: Tensor) -> None:
        if not self.recipe.has("never zeroed"):
            optimizer.zero_grad()
        self.manual_backward(value)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        rate = self.recipe.rate
        return (
            torch.optim.Adam(self.generator.parameters(), rate, betas=(0.5, 0.99)),
            torch.optim.Adam(self.discriminator.parameters(), rate, betas=(0.5, 0.99)),
        )

    def harm(self, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        made, generator = self(torch.randn(len(x), 6)), torch.cdist
        energy = 2 * generator(made, x).mean() - generator(made, made).mean() - generator(x, x).mean()
        return float(energy / x.std()), None
