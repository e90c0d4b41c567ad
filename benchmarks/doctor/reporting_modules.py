"""Modules of the reporting half, in several styles: criteria, functions, several losses, optimizers by hand."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.doctor import reporting_data
from benchmarks.doctor.learner import Learner, ending, loss, softmax_in_network
from benchmarks.doctor.module_faults import spoil_weights
from benchmarks.doctor.recipe import Recipe
from benchmarks.doctor.reporting_data import Data

RATES = {"adam": 3e-3, "adamw": 3e-3, "sgd": 0.1, "momentum": 0.02}
FUNCTIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: F.relu, nn.Tanh: torch.tanh, nn.GELU: F.gelu, nn.SiLU: F.silu, nn.LeakyReLU: F.leaky_relu,
    nn.Sigmoid: torch.sigmoid, nn.Identity: lambda x: x,
}  # fmt: skip


class Criterion(nn.Module):
    """The recipe's loss as a module."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return loss(self.recipe, output, target)


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


class SumLSTM(Learner):
    """A recurrent regression."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.lstm = nn.LSTM(2, recipe.width, batch_first=True)
        self.linear = nn.Linear(recipe.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.recipe.has("examples mixed"):
            b, t, c = x.shape
            hidden = nn.LSTM.forward(self.lstm, x.reshape(t, b, c).transpose(0, 1))[0][:, -1]
        else:
            hidden = self.lstm(x)[1][0][-1]
        if self.recipe.has("detached"):
            hidden = hidden.detach()
        y: Tensor = self.linear(hidden)
        for module in ending(self.recipe):
            y = module(y)
        return y

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        x, y = batch
        value = loss(self.recipe, self(x), y)
        self.log("train_loss", value, on_epoch=True)
        return value

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val_loss", loss(self.recipe, self(batch[0]), batch[1]))


class Block(nn.Module):
    """Causal attention and a feed-forward network, each behind a LayerNorm."""

    def __init__(self, width: int, recipe: Recipe) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.recipe, self.f = recipe, FUNCTIONS[recipe.layer]

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        if self.recipe.has("examples mixed"):  # the heads' softmax over the examples instead of the positions
            weights = (q @ k.transpose(-2, -1) / (c // 4) ** 0.5).tril().softmax(0)
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.dropout(self.proj(y.transpose(1, 2).reshape(b, t, c)), self.recipe.dropped, self.training)
        return x + F.dropout(self.down(self.f(self.up(self.ln2(x)))), self.recipe.dropped, self.training)


class LetterModel(Learner):
    """A language model that guesses every next letter."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width // 8 * 8
        self.tok, self.pos = nn.Embedding(9, width), nn.Embedding(10, width)
        self.blocks = nn.ModuleList(Block(width, recipe) for _ in range(recipe.depth))
        self.ln, self.lm_head = nn.LayerNorm(width), nn.Linear(width, 9, bias=False)
        nn.init.normal_(self.lm_head.weight, std=0.05 * recipe.strength("confident head"))

    def forward(self, idx: Tensor) -> Tensor:
        x = self.tok(idx) + self.pos(torch.arange(idx.size(1), device=idx.device))
        for block in self.blocks:
            x = block(x)
        if self.recipe.has("detached"):
            x = x.detach()
        logits: Tensor = self.lm_head(self.ln(x))
        for module in ending(self.recipe):
            logits = module(logits)
        return logits

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        idx, targets = batch
        logits = self(idx)
        return loss(self.recipe, logits.view(-1, logits.size(-1)), targets.view(-1))

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        idx, targets = batch
        self.log("val_loss", loss(self.recipe, self(idx).flatten(0, 1), targets.flatten()))


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


MAKERS: dict[str, Callable[[Recipe], Learner]] = {
    "residual cnn": ResidualNet,
    "functional classifier": lambda recipe: FunctionalNet(recipe, 2, 8),
    "functional binary classifier": lambda recipe: FunctionalNet(recipe, 6, 1),
    "regression by hand": lambda recipe: HandDriven(recipe, 8, 1),
    "normalised regression": BatchNormRegressor,
    "convolutions over time": Conv1dNet,
    "lstm": SumLSTM,
    "language model": LetterModel,
    "autoencoder": Autoencoder,
    "gan": GAN,
    "two heads": TwoHeads,
}
DATA: dict[str, Callable[[int, int], Data]] = {
    "residual cnn": reporting_data.bars,
    "functional classifier": reporting_data.circle,
    "functional binary classifier": reporting_data.rings,
    "regression by hand": reporting_data.friedman,
    "normalised regression": reporting_data.friedman,
    "convolutions over time": reporting_data.tones,
    "lstm": reporting_data.sums,
    "language model": reporting_data.chains,
    "autoencoder": reporting_data.surface,
    "gan": reporting_data.circle,
    "two heads": reporting_data.two_answers,
}
SUPERVISED = {"supervised", "automatic"}
TRAITS = {
    "residual cnn": SUPERVISED | {"float", "dropout"},
    "functional classifier": SUPERVISED
    | {"float", "unnormalised", "table", "feedforward", "nonlinear", "plain", "dying"},
    "functional binary classifier": SUPERVISED
    | {"float", "unnormalised", "table", "feedforward", "nonlinear", "plain", "dying"},
    "regression by hand": {
        "supervised",
        "float",
        "unnormalised",
        "table",
        "feedforward",
        "nonlinear",
        "plain",
        "dying",
    },
    "normalised regression": SUPERVISED | {"float", "table", "feedforward", "nonlinear", "dropout"},
    "convolutions over time": SUPERVISED | {"float", "unnormalised", "feedforward", "dropout"},
    "lstm": SUPERVISED | {"float", "unnormalised", "mixable"},
    "language model": {"automatic", "mixable", "supervised", "dropout"},
    "autoencoder": {"automatic", "float", "unnormalised", "table", "feedforward"},
    "gan": {"float", "unnormalised"},
    "two heads": SUPERVISED | {"float", "unnormalised", "table", "feedforward", "nonlinear", "plain"},
}
"""What each can have wrong, beside BatchNorm's own faults."""
TASKS = {
    "functional binary classifier": "binary", "regression by hand": "regression", "normalised regression": "regression",
    "lstm": "regression", "autoencoder": "own", "gan": "own", "two heads": "own",
}  # fmt: skip


def make(recipe: Recipe) -> Learner:
    return MAKERS[recipe.family](recipe)


def draw_recipe(family: str, draw: random.Random) -> Recipe:
    """A healthy training."""
    adaptive = family in ("language model", "lstm", "gan", "autoencoder")
    optimizer = "adam" if adaptive else draw.choice(list(RATES))
    norm = family in ("normalised regression", "convolutions over time", "residual cnn") and draw.random() < 0.7
    depth = 1 if family in ("lstm", "language model") else draw.choice((2, 3, 4))
    activation = draw.choice(("relu", "gelu", "silu", "leaky_relu", "tanh", "tanh"))
    traits = TRAITS[family] | {"detachable"}
    traits |= {"batchnorm"} if norm else {"plain"} if family == "convolutions over time" else set()
    traits |= {"flat batchnorm"} if norm and family == "normalised regression" else set()
    rate = RATES[optimizer] * draw.choice((0.6, 1, 1.4)) * (0.5 if family in ("gan", "autoencoder") else 1)
    return Recipe(
        family, TASKS.get(family, "classes"), draw.choice((24, 32, 40)), depth, activation, optimizer, rate,
        draw.choice((20, 32, 50)), norm, draw.choice((0.0, 0.1)) if "dropout" in traits else 0.0, frozenset(traits),
    )  # fmt: skip
