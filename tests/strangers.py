"""LightningModules that are not ours, to put the diagnostics on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl.diagnostics.jsonl import JSONLinesLogger


def cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    )


def images(count: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(3, (count,), generator=generator)
    return torch.randn(count, 1, 6, 6, generator=generator) + y[:, None, None, None], y


def loader(batch_size: int = 8) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*images()), batch_size=batch_size)


class Classifier(LightningModule):
    """A network, a loss, an optimizer; `before` is called with module and batch_idx at the end of training_step."""

    def __init__(
        self,
        net: nn.Module | None = None,
        optimizer: Callable[[Any], torch.optim.Optimizer] = lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        before: Callable[["Classifier", int], None] | None = None,
        spoil: Callable[[Tensor, int], Tensor] = lambda loss, _: loss,
    ) -> None:
        super().__init__()
        self.net = cnn() if net is None else net
        self.optimizer, self.before, self.spoil = optimizer, before, spoil
        self.seen: list[torch.optim.Optimizer] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        if self.before:
            self.before(self, batch_idx)
        self.log("loss", loss)
        return self.spoil(loss, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.net.parameters())


class Validated(Classifier):
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        # examples so different that a trace of them anywhere would be seen
        self.log("val_loss", cross_entropy(self.net(1000 * x), y))


class TwoOptimizers(LightningModule):
    """Manual optimization: two halves, each with an optimizer of its own, and the norms it saw itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.one = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh())
        self.two = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        self.norms: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        squares = 0.0
        for optimizer, half in zip(self.optimizers(), (self.one, self.two), strict=True):
            optimizer.zero_grad()
            loss = cross_entropy(self.two(self.one(x)), y)
            self.manual_backward(loss)
            squares += sum(float(p.grad.double().square().sum()) for p in half.parameters())
            optimizer.step()
        self.norms.append(squares**0.5)
        self.log("loss", loss)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.one.parameters(), lr=0.1), torch.optim.Adam(self.two.parameters(), lr=0.01)]


def fit(
    directory: Path,
    module: LightningModule,
    *callbacks: Callback,
    logger: Any = None,
    loaders: tuple[Any, ...] = (),
    ckpt_path: Path | None = None,
    **options: Any,
) -> JSONLinesLogger:
    """Train for 4 steps, or as options say, with nothing else switched on; the logger has what was measured."""
    logger = JSONLinesLogger(str(directory)) if logger is None else logger
    settings: dict[str, Any] = {
        "max_steps": 4,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "default_root_dir": directory,
    }
    trainer = Trainer(callbacks=list(callbacks), logger=logger, **(settings | options))
    trainer.fit(module, *(loaders or (loader(),)), ckpt_path=ckpt_path, weights_only=True)
    return logger


def lines(logger: JSONLinesLogger) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logger.path.read_text(encoding="utf-8").splitlines()]


def values(logger: JSONLinesLogger) -> dict[str, dict[int, float | None]]:
    """tag -> step -> number; a step that comes twice is an error."""
    found: dict[str, dict[int, float | None]] = {}
    for line in lines(logger):
        for tag, number in line.get("values", {}).items():
            if tag == "epoch":  # which Lightning adds to whatever is logged
                continue
            assert line["step"] not in found.setdefault(tag, {}), (tag, line["step"])
            found[tag][line["step"]] = number
    return found


def hooks_on(module: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(each, kind)) for each in module.modules() for kind in kinds)
