"""A run that was halted and resumed has the verdict of one that was not, in this project and in others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from lightning.pytorch import Callback, LightningModule, Trainer
from probes import HaltedError
from strangers import TwoOptimizers, fit
from test_doctor_callback import Learner, cnn, mlp, pictures, table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl.diagnostics import Doctor, GradientStats
from makemore_pl.diagnostics.packed_series import pack, unpack
from makemore_pl.doctor.diagnosis import ANY_PART
from makemore_pl.doctor.rule import RULES
from makemore_pl.train import run

DOCTOR = "callbacks={doctor: {_target_: makemore_pl.diagnostics.Doctor}}"
HALT = "halt: {_target_: probes.Halt, step: 150}"
LENGTH = ("trainer.max_steps=200", "trainer.val_check_interval=70", "trainer.watch_every=10")
LATE = ("optim.decay_at=0.6", "optim.decay_factor=0.001", *LENGTH)
"""The rate drops before the halt, to where steps alone would be too small."""


def findings(run_dir: Path) -> Any:
    return json.loads((run_dir / "findings.json").read_text())


def ids(run_dir: Path) -> list[str]:
    return [each["id"] for each in findings(run_dir)["findings"]]


def halted(small: Compose, run_dir: Path, *overrides: str) -> str:
    """Halt a run after its validation at step 140; returns what resumes it."""
    with pytest.raises(HaltedError):
        run(small(*overrides, "+callbacks.halt={_target_:probes.Halt,step:150}", run_dir=run_dir), announce=False)
    return f"ckpt_path={run_dir / 'checkpoints' / 'last.ckpt'}"


@pytest.mark.parametrize(
    ("callbacks", "network"),
    [
        (DOCTOR, ()),
        (DOCTOR, ("optim.lr=300",)),
        (DOCTOR, ("model.n_layers=2", "model.batchnorm=pre_output", "model.dropout=0.2", "optim=adam")),
        ("callbacks=diagnostics", ("model.activation=relu", "trainer.gradient_clip_val=0.05", "optim.weight_decay=1")),
    ],
)
def test_this_project_s_runs(small: Compose, tmp_path: Path, callbacks: str, network: tuple[str, ...]) -> None:
    whole, broken, overrides = tmp_path / "whole", tmp_path / "broken", (callbacks, *network, *LATE)
    run(small(*overrides, run_dir=whole), announce=False)
    resume = halted(small, broken, *overrides)
    run(small(*overrides, resume, run_dir=broken), announce=False)
    assert findings(broken) == findings(whole)
    assert "update_too_small" not in ids(broken)
    states = [torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (whole, broken)]
    assert differing(*(each["callbacks"]["Doctor"] for each in states)) == []


def differing(ours: Any, theirs: Any) -> list[str]:
    from reliability.comparison import unequal

    return list(unequal(ours, theirs))


def test_a_checkpoint_of_before(small: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume = halted(small, tmp_path / "old", *LATE)
    assert "Doctor" not in torch.load(resume.partition("=")[2], weights_only=True)["callbacks"]
    run(small(DOCTOR, *LATE, resume, run_dir=tmp_path / "old"))
    judged = findings(tmp_path / "old")
    assert judged["findings"] == []
    assert set(judged["checked"]) <= set(ANY_PART)
    why = {each["id"]: each["reason"] for each in judged["abstentions"] if each["applies"]}
    reason = "the start was not seen: the run was resumed after 141 steps that nothing is known of"
    needing = {"update_too_small", "update_too_large", "saturation", "diverged", "no_learning", "overfitting"}
    assert {why[each] for each in needing} == {reason}
    said = " ".join(capsys.readouterr().out.split())
    assert "The first 141 steps were not seen" in said
    assert "healthy" not in said.lower()


# --- modules of others -----------------------------------------------------------------------------------------------


class Functions(nn.Module):
    """Activation functions that are no modules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(torch.tanh(self.b(torch.relu(self.a(x)))))
        return y


class Validated(Learner):
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(self(batch[0]), batch[1]))


class Halt(Callback):
    """Saves after so many steps and breaks off, as a kill after a checkpoint would."""

    def __init__(self, steps: int, path: Path) -> None:
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self.steps:
            trainer.save_checkpoint(self.path)
            raise HaltedError


def two_linears() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Linear(36, 16), nn.Sigmoid(), nn.Linear(16, 3))


MODULES: dict[str, tuple[Callable[[], LightningModule], tuple[Tensor, Tensor], dict[str, Any]]] = {
    "convolutions": (lambda: Validated(cnn()), pictures(), {}),
    "biases and a slip": (lambda: Validated(cnn(nn.Softmax(1), bias=True)), pictures(), {}),
    "regression": (lambda: Validated(mlp(nn.Tanh()), functional.mse_loss), table(scale=30.0), {}),
    "functions": (lambda: Validated(Functions(), functional.mse_loss), table(), {"gradient_clip_val": 0.01}),
    "linear": (lambda: Validated(two_linears()), pictures(), {"accumulate_grad_batches": 3}),
    "two optimizers": (TwoOptimizers, pictures(), {"max_steps": 240}),
}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
@pytest.mark.parametrize("steps", [1, 4, 47])
@pytest.mark.parametrize("name", MODULES)
def test_modules_of_others(tmp_path: Path, name: str, steps: int) -> None:
    build, data, options = MODULES[name]
    # eight equal minibatches an epoch, because Lightning's own resume begins the epoch's data anew
    equal = TensorDataset(*(each[:32].repeat(8, *[1] * (each.ndim - 1)) for each in data))
    loaders = tuple(DataLoader(equal, batch_size=32) for _ in range(2))
    options = {"max_steps": 120, "logger": False, "num_sanity_val_steps": 0} | options
    doctors = []
    for halt in (None, steps):
        directory, path = tmp_path / str(halt), tmp_path / "saved.ckpt"
        resumed: dict[str, Any] = {}
        if halt:
            torch.manual_seed(7)
            with pytest.raises(HaltedError):
                fit(directory, build(), Doctor(announce=False), Halt(halt, path), loaders=loaders, **options)
            resumed = {"ckpt_path": path}
        else:
            torch.manual_seed(7)
        doctors.append(doctor := Doctor(announce=False))
        fit(directory, build(), doctor, loaders=loaders, **options, **resumed)
    whole, doctor = doctors
    assert whole.evidence is not None
    assert doctor.evidence is not None
    assert doctor.evidence.facts == whole.evidence.facts
    assert doctor.evidence.series == whole.evidence.series
    assert doctor.diagnosis == whole.diagnosis
