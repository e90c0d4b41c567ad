"""A run that was halted and resumed has the verdict of one that was not, in this project and in others."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Compose
from lightning.pytorch import Callback, LightningModule, Trainer
from probes import HaltedError
from strangers import TwoOptimizers, fit
from test_doctor_callback import Learner, cnn, mlp, pictures, table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl.checkup import examine_run
from makemore_pl.diagnostics import Doctor
from makemore_pl.doctor.diagnosis import ANY_PART
from makemore_pl.train import run

sys.path.insert(0, str(ROOT))

from reliability.comparison import unequal

DOCTOR = "callbacks={doctor: {_target_: makemore_pl.diagnostics.Doctor}}"
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
    assert list(unequal(*(each["callbacks"]["Doctor"] for each in states))) == []


def test_a_run_that_was_killed_after_its_last_step(small: Compose, tmp_path: Path) -> None:
    """No step is left when it goes on."""
    overrides = (DOCTOR, "optim.lr=300", *LENGTH)
    run(small(*overrides), announce=False)
    expected = findings(tmp_path / "run")
    (tmp_path / "run" / "findings.json").unlink()
    (tmp_path / "run" / "metrics.json").unlink()
    resumed = f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    run(small(*overrides, resumed), announce=False)
    assert findings(tmp_path / "run") == expected
    assert expected["findings"]


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


def test_a_recorded_part(small: Compose, tmp_path: Path) -> None:
    """diagnostics.jsonl of a run that was resumed into another directory begins in the middle."""
    overrides = (DOCTOR, "logger=jsonl", *LATE)
    resume = halted(small, tmp_path / "first", *overrides)
    run(small(*overrides, resume, run_dir=tmp_path / "second"), announce=False)
    assert findings(tmp_path / "second")["findings"] == [], "the doctor has seen all of it"
    judged = examine_run(tmp_path / "second")
    assert judged.unseen == 150, "the first watched step there"
    assert judged.findings == ()
    assert set(judged.checked) <= set(ANY_PART)


def test_a_hopeless_job_that_was_killed_while_it_stopped(small: Compose, tmp_path: Path) -> None:
    """Resumed, it stops where it stood."""
    stopping = "+callbacks.stop={_target_: makemore_pl.running.hopeless.StopOnCritical}"
    overrides = (DOCTOR, stopping, "logger=jsonl", *LENGTH)
    run(small(*overrides, "trainer.max_steps=71", run_dir=tmp_path / "0"), announce=False)
    (tmp_path / "0" / "diagnostics.jsonl").write_text(
        "".join(
            json.dumps({"version": 1, "step": step, "values": {"train/loss_mean": 0.0}}) + "\n" for step in range(200)
        )
    )
    metrics = run(small(*overrides, "optim.lr=400", run_dir=tmp_path / "1"), announce=False)
    assert (metrics["stopped_by"], metrics["steps"]) == ("Doctor: update_too_large", 71)
    before = findings(tmp_path / "1")
    (tmp_path / "1" / "metrics.json").unlink()
    resume = f"ckpt_path={tmp_path / '1' / 'checkpoints' / 'last.ckpt'}"
    again = run(small(*overrides, "optim.lr=400", resume, run_dir=tmp_path / "1"), announce=False)
    assert (again["stopped_by"], again["steps"]) == (metrics["stopped_by"], 71)
    assert again["val/loss"] == metrics["val/loss"]
    assert findings(tmp_path / "1") == before


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
    "two optimizers": (TwoOptimizers, pictures(), {"max_steps": 120}),
}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
@pytest.mark.parametrize("steps", [2, 47])
@pytest.mark.parametrize("name", MODULES)
def test_modules_of_others(tmp_path: Path, name: str, steps: int) -> None:
    build, data, options = MODULES[name]
    # eight equal minibatches an epoch, because Lightning's own resume begins the epoch's data anew
    equal = TensorDataset(*(each[:32].repeat(8, *[1] * (each.ndim - 1)) for each in data))
    loaders = tuple(DataLoader(equal, batch_size=32) for _ in range(2))
    options = {"max_steps": 60, "logger": False, "num_sanity_val_steps": 0} | options
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


def judged(directory: Path, *doctors: Doctor, **options: Any) -> Trainer:
    """Train the convolutions, at first for 20 steps; the trainer."""
    data = TensorDataset(*(each[:32].repeat(8, *[1] * (each.ndim - 1)) for each in pictures()))
    found: list[Trainer] = []

    class Keep(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            found.append(trainer)

    settings = {"max_steps": 20, "logger": False} | options
    fit(directory, Learner(cnn()), Keep(), *doctors, loaders=(DataLoader(data, batch_size=32),), **settings)
    return found[0]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_several_doctors_and_one_that_came_later(tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    judged(tmp_path, Doctor(announce=False), Doctor(announce=False)).save_checkpoint(path)
    three = [Doctor(announce=False) for _ in range(3)]
    judged(tmp_path, *three, max_steps=40, ckpt_path=path)
    unseen = [each.diagnosis.unseen for each in three]
    assert unseen == [0, 0, 20]
    starts = [min(each.evidence.series["grad_norm/before_clipping"]) for each in three if each.evidence]
    assert starts == [0, 0, 20]
    assert three[0].diagnosis == three[1].diagnosis
    assert "update_too_large" not in three[2].checked


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_second_fit_and_a_second_resume(tmp_path: Path) -> None:
    path, doctor = tmp_path / "saved.ckpt", Doctor(announce=False)
    trainer = judged(tmp_path, doctor)
    trainer.fit_loop.epoch_loop.max_steps = 30
    trainer.fit(trainer.lightning_module, trainer.train_dataloader)
    trainer.save_checkpoint(path)
    again = Doctor(announce=False)
    judged(tmp_path, again, max_steps=40, ckpt_path=path)
    for each in (doctor, again):
        assert each.evidence
        assert each.diagnosis.unseen == 0
        assert list(each.evidence.series["train/loss"]) == list(range(30 if each is doctor else 40))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("damage", ["gone", "of another network"])
def test_a_state_that_does_not_fit_is_none(tmp_path: Path, damage: str) -> None:
    """Also where the doctor has seen another training before."""
    path, doctor = tmp_path / "saved.ckpt", Doctor(announce=False)
    judged(tmp_path, doctor).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    if damage == "gone":
        del checkpoint["callbacks"]["Doctor"]
    else:
        checkpoint["callbacks"]["Doctor"]["history"]["first"]["seen"]["order"] = ["net.99"]
    torch.save(checkpoint, path)
    judged(tmp_path, doctor, max_steps=40, ckpt_path=path)
    assert doctor.evidence
    assert doctor.diagnosis.unseen == 20
    assert min(doctor.evidence.series["train/loss"]) == 20
    assert doctor.evidence.facts.layers, "what its own first batches tell"
