"""LightningModules that are not ours, healthy and with the classic slips, to measure the doctor by."""

import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.doctor_cases import HALVES, Case, Outcome

Data = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class Learner(LightningModule):
    """A network, its data and its loss, and what a slip changes of them."""

    def __init__(self, kind: "Kind", slip: "Slip") -> None:
        super().__init__()
        self.net: Any = slip.network(kind.network())
        self.loss, self.slip, self.lr, self.optimizer = slip.loss(kind.loss), slip, kind.lr * slip.rate, kind.optimizer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net[-1](self.net[:-1](x).detach()) if self.slip.detach else self.net(x)
        return y

    def on_train_epoch_start(self) -> None:
        if self.slip.asleep:
            self.eval()

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        # always by the right loss, so that twins can be compared
        self.log("val_loss", self.loss(self(batch[0]), batch[1]))

    def optimizer_zero_grad(self, *arguments: Any) -> None:
        if not self.slip.accumulate:
            super().optimizer_zero_grad(*arguments)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        owned = list(self.net[-1].parameters() if self.slip.head_only else self.net.parameters())
        if self.optimizer == "adam":
            return torch.optim.Adam(owned, self.lr, weight_decay=self.slip.decay)
        return torch.optim.SGD(owned, self.lr, momentum=0.9, weight_decay=self.slip.decay)


@dataclass(frozen=True, slots=True)
class Kind:
    """A healthy training."""

    name: str
    network: Callable[[], nn.Sequential]
    data: Callable[[int, int], Data]
    """Count and seed -> inputs and targets."""
    loss: Loss
    lr: float = 1e-2
    optimizer: str = "adam"
    tags: frozenset[str] = frozenset()
    """What slips need: classes, regression, batchnorm, images, relu, sequence."""


@dataclass(frozen=True, slots=True)
class Slip:
    """What goes wrong."""

    name: str = "healthy"
    root: str | None = None
    needs: str = ""
    network: Callable[[nn.Sequential], nn.Sequential] = lambda net: net
    data: Callable[[Data], Data] = lambda data: data
    loss: Callable[[Loss], Loss] = lambda loss: loss
    rate: float = 1.0
    decay: float = 0.0
    asleep: bool = False
    accumulate: bool = False
    head_only: bool = False
    detach: bool = False
    options: dict[str, Any] = field(default_factory=dict)


class TimeFirst(nn.Module):
    """(B, T, C) to (T, B, C)."""

    def __init__(self, view: bool = False) -> None:
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


class Attention(nn.Module):
    """A transformer's encoder over tokens, averaged over positions."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(12, 24), nn.Parameter(0.02 * torch.randn(8, 24))
        layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.encoder(self.embedding(x) + self.position).mean(1)
        return y


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, bias=False),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip


def plain(inputs: int, outputs: int, activation: type[nn.Module] = nn.ReLU, layers: int = 2) -> nn.Sequential:
    sizes = [inputs, *[48] * layers]
    hidden = [each for a, b in pairwise(sizes) for each in (nn.Linear(a, b), activation())]
    return nn.Sequential(*hidden, nn.Linear(48, outputs))


def images(count: int, seed: int) -> Data:
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.randint(4, (count,), generator=draw)
    return patterns[y] + 1.5 * torch.randn(count, 1, 8, 8, generator=draw), y


def table(count: int, seed: int) -> Data:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=draw)
    return x, (2 * x[:, :1]).sin() + x[:, 1:2] * x[:, 2:3] + 0.1 * torch.randn(count, 1, generator=draw)


def sequences(count: int, seed: int) -> Data:
    x = torch.randn(count, 7, 5, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, :, 0].sum(1) > 0).long() + (x[:, :, 1].sum(1) > 0).long()


def tokens(count: int, seed: int) -> Data:
    x = torch.randint(12, (count, 8), generator=torch.Generator().manual_seed(seed))
    return x, (x < 4).sum(1).clamp(max=3)


def copied(count: int, seed: int) -> Data:
    x, _ = images(count, seed)
    x = x.flatten(1)
    return x, x


KINDS = {
    "tuning": [
        Kind(
            "cnn",
            convolutional,
            images,
            functional.cross_entropy,
            3e-3,
            tags=frozenset({"classes", "batchnorm", "relu", "float"}),
        ),
        Kind(
            "mlp",
            lambda: plain(6, 1),
            table,
            functional.mse_loss,
            3e-3,
            tags=frozenset({"regression", "relu", "float"}),
        ),
        Kind(
            "lstm",
            lambda: nn.Sequential(TimeFirst(), LastOutput(nn.LSTM(5, 24)), nn.Linear(24, 3)),
            sequences,
            functional.cross_entropy,
            tags=frozenset({"classes", "sequence", "float"}),
        ),
        Kind(
            "autoencoder",
            lambda: nn.Sequential(*plain(64, 16), *plain(16, 64)),
            copied,
            functional.mse_loss,
            3e-3,
            tags=frozenset({"relu", "float"}),
        ),
    ],
    "reporting": [
        Kind(
            "cnn, sgd",
            convolutional,
            images,
            functional.cross_entropy,
            2e-2,
            "sgd",
            frozenset({"classes", "batchnorm", "relu", "float"}),
        ),
        Kind(
            "tanh mlp",
            lambda: plain(6, 1, nn.Tanh, 3),
            table,
            functional.mse_loss,
            3e-3,
            tags=frozenset({"regression", "float"}),
        ),
        Kind(
            "mlp on pictures",
            lambda: nn.Sequential(nn.Flatten(), *plain(64, 4)),
            images,
            functional.cross_entropy,
            1e-3,
            tags=frozenset({"classes", "relu", "float"}),
        ),
        Kind(
            "gru",
            lambda: nn.Sequential(TimeFirst(), LastOutput(nn.GRU(5, 24)), nn.Linear(24, 3)),
            sequences,
            functional.cross_entropy,
            tags=frozenset({"classes", "sequence", "float"}),
        ),
        Kind(
            "transformer",
            lambda: nn.Sequential(Attention(), nn.Linear(24, 4)),
            tokens,
            functional.cross_entropy,
            2e-3,
            tags=frozenset({"classes"}),
        ),
    ],
}


def _with_output(module: Callable[[], nn.Module]) -> Callable[[nn.Sequential], nn.Sequential]:
    return lambda net: nn.Sequential(*net, module())


def _constant(net: nn.Sequential) -> nn.Sequential:
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.05)
    return net


def _dead(net: nn.Sequential) -> nn.Sequential:
    linears = [each for each in net.modules() if isinstance(each, (nn.Linear, nn.BatchNorm2d)) and each is not net[-1]]
    assert linears[-1].bias is not None
    nn.init.constant_(linears[-1].bias, -30.0)
    return net


def _viewed(net: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(TimeFirst(view=True), *list(net)[1:])


def _shuffled(data: Data) -> Data:
    return data[0], data[1][torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(9))]


SLIPS = [
    Slip("zero_grad forgotten", "gradients_accumulate", accumulate=True),
    Slip("eval left on", "batchnorm_eval", "batchnorm", asleep=True),
    Slip("softmax module", "softmax_before_cross_entropy", "classes", _with_output(lambda: nn.Softmax(1))),
    Slip(
        "softmax function",
        "softmax_before_cross_entropy",
        "classes",
        loss=lambda loss: lambda p, y: loss(p.softmax(1), y),
    ),
    Slip("relu on logits", "activation_before_loss", "classes", _with_output(nn.ReLU)),
    Slip("logits as log-likelihoods", "activation_before_loss", "classes", loss=lambda _: functional.nll_loss),
    Slip("sigmoid for wide targets", "activation_before_loss", "regression", _with_output(nn.Sigmoid)),
    Slip("relu for signed targets", "activation_before_loss", "regression", _with_output(nn.ReLU)),
    Slip("left out of the optimizer", "frozen_parameters", head_only=True),
    Slip("detached", "no_gradient", detach=True),
    Slip("view for permute", "examples_mixed", "sequence", _viewed),
    Slip("inputs as bytes", "input_scale", "float", data=lambda data: (data[0] * 60 + 128, data[1])),
    Slip("inputs times 1,000", "input_scale", "float", data=lambda data: (data[0] * 1000, data[1])),
    Slip("targets far away", "target_scale", "regression", data=lambda data: (data[0], data[1] * 100 + 500)),
    Slip(
        "sum for mean",
        "update_too_large",
        "regression",
        loss=lambda loss: lambda p, y: 100 * loss(p, y) * len(y),
        rate=30,
    ),
    Slip("rate times 300", "update_too_large", rate=300),
    Slip("rate over 1,000", "update_too_small", rate=1e-3),
    Slip("dead relu", "dead_units", "relu", _dead),
    Slip("constant weights", "symmetric_units", "relu", _constant),
    Slip("shuffled targets", "no_learning", "classes", data=_shuffled),
    Slip("one example for all", "constant_input", "float", data=lambda data: (data[0] * 0 + 1, data[1])),
    Slip("decay 1", "overregularized", "relu", decay=1.0),
]


def fit(kind: Kind, slip: Slip, seed: int) -> Outcome:
    """One short training with nothing but the doctor."""
    from benchmarks.doctor import outcome
    from makemore_pl.diagnostics import Doctor

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    train, held = slip.data(kind.data(2048, 100 + seed)), slip.data(kind.data(1024, 200 + seed))
    module, doctor = Learner(kind, slip), Doctor(announce=False)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            max_epochs=6, callbacks=[doctor], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=scratch,
        )  # fmt: skip
        loader = DataLoader(TensorDataset(*train), batch_size=32, shuffle=True)
        trainer.fit(module, loader, DataLoader(TensorDataset(*held), batch_size=256))
    assert doctor.evidence
    return outcome(harm(kind, slip, module, seed), doctor.evidence)


@torch.no_grad()
def harm(kind: Kind, slip: Slip, module: Learner, seed: int) -> float:
    """The healthy training's own loss on held-out examples, in the healthy units, whatever loss was trained on."""
    module.eval()
    x, y = slip.data(kind.data(1024, 300 + seed))
    predicted = module(x)
    if slip.root == "target_scale":
        return float(kind.loss((predicted - 500) / 100, (y - 500) / 100))
    if slip.root == "no_learning":
        y = kind.data(1024, 300 + seed)[1]
    loss = float(kind.loss(predicted, y))
    return loss if math.isfinite(loss) else math.inf


def modules(quick: bool) -> list[Case]:
    """Every kind healthy, and with every slip that it can have."""
    cases = []
    for half in HALVES:
        for kind in KINDS[half]:
            cases.append(Case(f"{kind.name}, healthy", "module", half, (), _runner(kind, Slip())))
            for slip in SLIPS[:: 6 if quick else 1]:
                if not slip.needs or slip.needs in kind.tags:
                    assert slip.root
                    name = f"{kind.name}, {slip.name}"
                    twin = _runner(kind, Slip())
                    cases.append(Case(name, "module", half, (slip.root,), _runner(kind, slip), twin))
    return cases


def _runner(kind: Kind, slip: Slip) -> Callable[[int], Outcome]:
    return lambda seed: fit(kind, slip, seed)
