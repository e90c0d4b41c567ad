"""The loss of a validation is found whatever it is called, and nothing else is taken for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from strangers import fit
from test_doctor_callback import Learner, cnn, pictures
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl.diagnostics import Doctor
from makemore_pl.diagnostics.validation_loss import ValidationLoss

Data = tuple[Tensor, Tensor]
FOUND: dict[str, tuple[str | None, dict[str, float], float]] = {
    # name: (kind of the training loss, what a validation logs, its loss)
    "an alias before others": (None, {"val/kl": 3.0, "val_loss": 2.0}, 2.0),
    "by its role": ("mse", {"val/objective": 2.0, "mae/val": 1.0}, 2.0),
    "by its kind": ("cross_entropy", {"val_acc": 0.5, "val/ce": 2.0}, 2.0),
    "likelihood": ("cross_entropy", {"dev/nll": 2.0}, 2.0),
    "the name behind": ("mse", {"mae/val": 1.0, "mse/val": 2.0}, 2.0),
    "logged in validations only": ("mse", {"rmse": 3.0}, 9.0),
    "absolute": ("l1", {"val_mae": 2.0, "val_rmse": 1.0}, 2.0),
}
NONE: dict[str, tuple[str | None, dict[str, float]]] = {
    "accuracy": ("cross_entropy", {"val_accuracy": 0.5, "val_iou": 0.3}),
    "another kind": ("mse", {"val_mae": 0.5}),
    "letters within a word": ("cross_entropy", {"val_rice": 0.5, "evaluations": 3.0}),
    "of training": ("mse", {"train/mse": 0.5, "loss": 1.0}),
    "an unknown kind": (None, {"val/ce": 0.5}),
}
BEFORE = {"train/mse": 0.4, "loss": 0.9}


@pytest.mark.parametrize("name", FOUND)
def test_it_is_found(name: str) -> None:
    kind, logged, loss = FOUND[name]
    validation = ValidationLoss()
    for _ in range(2):  # in the second validation its names are no longer new
        validation.begin(BEFORE)
        assert validation.end(BEFORE | logged, kind) == loss


@pytest.mark.parametrize("name", NONE)
def test_nothing_else_is_taken_for_it(name: str) -> None:
    kind, logged = NONE[name]
    validation = ValidationLoss()
    validation.begin(BEFORE)
    assert validation.end(BEFORE | logged, kind) is None


def test_what_is_returned_is_averaged_over_examples() -> None:
    validation = ValidationLoss()
    validation.begin({})
    validation.see(torch.tensor(1.0), (torch.zeros(30, 2), torch.zeros(30)))
    validation.see({"val_loss": torch.tensor(5.0), "hits": torch.tensor(7.0)}, (torch.zeros(10, 2), torch.zeros(10)))
    validation.see({"hits": torch.tensor(7.0)}, (torch.zeros(10, 2), torch.zeros(10)))
    assert validation.end({"val_accuracy": 0.5}, "mse") == 2.0
    validation.begin({})
    assert validation.end({}, "mse") is None


class Validated(Learner):
    """Returns the loss of a validation, on inputs that are scaled by a factor and shifted."""

    def __init__(self, factor: float) -> None:
        super().__init__(cnn())
        self.factor = factor

    def validation_step(self, batch: Data, batch_idx: int) -> Tensor:
        return self.loss(self(self.factor * batch[0] + self.factor - 1), batch[1])


@pytest.mark.parametrize(("factor", "roots"), [(1.0, []), (6.0, ["train_val_mismatch"])])
def test_a_validation_that_only_returns_its_loss_is_compared(factor: float, roots: list[str], tmp_path: Path) -> None:
    doctor = judged(tmp_path, Validated(factor), 1024)
    assert [each.id for each in doctor.diagnosis.roots] == roots


@pytest.mark.parametrize(("examples", "found"), [(24, True), (1024, False)])
def test_a_few_examples_are_overfitted(examples: int, found: bool, tmp_path: Path) -> None:
    roots = [each.id for each in judged(tmp_path, Validated(1.0), examples, noise=3.0).diagnosis.roots]
    assert ("overfitting" in roots) is found
    assert "no_learning" not in roots


def judged(directory: Path, module: Learner, examples: int, noise: float = 0.0, **options: Any) -> Doctor:
    doctor = Doctor(announce=False)
    x, y = pictures(examples + 256)
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    train = DataLoader(TensorDataset(x[256:], y[256:]), batch_size=16)
    held = DataLoader(TensorDataset(x[:256], y[:256]), batch_size=256)
    every = max(1, 200 // len(train) // 5)
    fit(directory, module, doctor, loaders=(train, held), max_steps=200, max_epochs=-1, check_val_every_n_epoch=every,
        num_sanity_val_steps=0, logger=False, **options)  # fmt: skip
    return doctor


def test_losses_are_whole_where_a_scheduler_accumulates_gradients(tmp_path: Path) -> None:
    module = Learner(cnn())
    seen: list[float] = []
    plain = module.loss

    def noted(z: Tensor, y: Tensor) -> Tensor:
        loss = plain(z, y)
        seen.append(float(loss.detach()))
        return loss

    module.loss = noted
    doctor = Doctor(announce=False)
    loader = DataLoader(TensorDataset(*pictures(128)), batch_size=16)
    fit(tmp_path, module, doctor, GradientAccumulationScheduler({0: 2}), loaders=(loader,), max_steps=8, logger=False)
    assert doctor.evidence
    assert list(doctor.evidence.series["train/loss"].values()) == pytest.approx(seen[::2])
    assert doctor.evidence.facts.loss_scale == pytest.approx(1)
