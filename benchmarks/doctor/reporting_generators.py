"""Modules of the reporting half that give back signals: a variational autoencoder, a denoiser, and a GAN."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.doctor.learner import Criterion, Learner, ending
from benchmarks.doctor.module_faults import spoil_weights
from benchmarks.doctor.recipe import Recipe
from benchmarks.doctor.reporting_data import Data


class VAE(Learner):
    """Three numbers with their spread between an encoder and a decoder; the penalty on them is warmed up."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width, act = recipe.width, recipe.layer
        self.encoder = nn.Sequential(nn.Linear(36, width), act(), nn.Linear(width, width), act())
        self.fc_mu, self.fc_logvar = nn.Linear(width, 3), nn.Linear(width, 3)
        self.decoder = nn.Sequential(nn.Linear(3, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 36))
        spoil_weights(recipe, self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mu, logvar = self.fc_mu(h), self.fc_logvar(h)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu) if self.training else mu
        return self.decoder(z), mu, logvar

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        again, mu, logvar = self(x)
        kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1).mean()
        return F.mse_loss(again, x, reduction="sum") / len(x), kl

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        reconstruction, kl = self._terms(batch[0])
        value = reconstruction + min(1.0, self.global_step / 100) * kl
        self.log_dict({"train/elbo": -value, "train/kl": kl, "train/rec": reconstruction})
        return value

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val/loss", sum(self._terms(batch[0])))

    def harm(self, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        return float(F.mse_loss(self(x)[0], x) / x.var(0).mean()), 1.0


class Denoiser(Learner):
    """Convolutions that guess the signal; the rate falls in steps."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width // 2
        blocks: list[nn.Module] = []
        for place in range(recipe.depth):
            bias = not recipe.norm or recipe.has("bias before batchnorm")
            blocks.append(nn.Conv1d(width if place else 1, width, 5, padding=2, padding_mode="replicate", bias=bias))
            blocks += [nn.BatchNorm1d(width, momentum=recipe.memory)] if recipe.norm else []
            blocks.append(recipe.layer())
        self.net = nn.ModuleDict({"body": nn.Sequential(*blocks), "tail": nn.Conv1d(width, 1, 1)})
        self.metric = Criterion(recipe)
        spoil_weights(recipe, self)

    def forward(self, noisy: Tensor) -> Tensor:
        h = self.net["body"](noisy)
        y: Tensor = self.net["tail"](h.detach() if self.recipe.has("detached") else h)
        for last in ending(self.recipe):
            y = last(y)
        return y

    def training_step(self, batch: Data, batch_idx: int) -> dict[str, Tensor]:
        noisy, clean = batch
        return {"loss": self.metric(self(noisy), clean)}

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        value = self.metric(self(batch[0]), batch[1])
        self.log_dict({"loss/val": value, "psnr/val": -10 * value.log10()})

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer_of(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.3)]


class LeastSquaresGAN(Learner):
    """Two networks against each other, the critic's gradients clipped, optimizers toggled."""

    steps_a_batch = 2

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.automatic_optimization = False
        width = recipe.width
        self.G = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), recipe.layer(), nn.Linear(width, 2))
        self.D = nn.Sequential(
            nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        y: Tensor = self.G(z)
        return y

    def training_step(self, batch: Data, batch_idx: int) -> None:
        real, _ = batch
        opt_g: Any
        opt_d: Any
        opt_g, opt_d = self.optimizers()
        fake = self(torch.randn(len(real), 4))
        self.toggle_optimizer(opt_d)
        d_loss = 0.5 * ((self.D(real) - 1) ** 2).mean() + 0.5 * (self.D(fake.detach()) ** 2).mean()
        self._step(opt_d, d_loss, clip=True)
        self.untoggle_optimizer(opt_d)
        self.toggle_optimizer(opt_g)
        g_loss = 0.5 * ((self.D(fake) - 1) ** 2).mean()
        self._step(opt_g, g_loss)
        self.untoggle_optimizer(opt_g)
        self.log_dict({"d_loss": d_loss, "g_loss": g_loss}, prog_bar=True)

    def _step(self, optimizer: Any, value: Tensor, clip: bool = False) -> None:
        if not self.recipe.has("never zeroed"):
            optimizer.zero_grad()
        self.manual_backward(value)
        if clip:
            self.clip_gradients(optimizer, 1.0, "norm")
        optimizer.step()

    def configure_optimizers(self) -> Any:
        rate = self.recipe.rate
        g = torch.optim.RMSprop(self.G.parameters(), rate)
        return [g, torch.optim.Adam(self.D.parameters(), rate, betas=(0.5, 0.999))], []

    def harm(self, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        """The distance of energies between what is made and what is there."""
        made = self(torch.randn(len(x), 4))
        energy = 2 * torch.cdist(made, x).mean() - torch.cdist(made, made).mean() - torch.cdist(x, x).mean()
        return float(energy / x.std()), None
