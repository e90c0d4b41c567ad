"""build(config) and run(config): what a run writes, resumes, refuses and reports."""

import json
import logging
import math
import os
import pickle
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import EXPERIMENTS, ROOT, WORDS, Compose, Finished
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import LambdaCallback, LearningRateMonitor, ModelCheckpoint, Timer, TQDMProgressBar
from probes import HaltedError, Recorder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from test_sweep import SMALL, started, wait_until
from torch import Tensor

from makemore_pl import data
from makemore_pl.checkpoint import load_module, read_checkpoint
from makemore_pl.checkup import examine_run
from makemore_pl.config import Config, OptimConfig, TrainerConfig
from makemore_pl.config.stored_config import load_config
from makemore_pl.diagnostics import UpdateStats
from makemore_pl.errors import hydra_raises, one_sentence
from makemore_pl.files import write_atomically
from makemore_pl.losses import split_loss
from makemore_pl.module import learning_rate
from makemore_pl.running.accelerator import choose_accelerator
from makemore_pl.running.execution import acts_on_every_step, choose_engine, choose_watch_every
from makemore_pl.running.interruption import how_to_go_on
from makemore_pl.running.run_lock import alone_in
from makemore_pl.running.signals import ONE, SIGNALS, Stopped
from makemore_pl.stride import compiling
from makemore_pl.train import build, run

# These networks have all that resuming must restore and watching must not change: momentum buffers, Adam's moments and
# step count, running statistics, the random numbers of dropout, clipping.
NETWORKS = {
    "batchnorm_momentum": ("model.batchnorm=pre_output", "optim.momentum=0.9", "optim.lr=0.02"),
    "adam_clipped": ("optim=adam", "optim.lr=0.01", "trainer.gradient_clip_val=0.5"),
    "adamw_dropout_batchnorm": ("optim=adamw", "optim.lr=0.01", "model.dropout=0.3", "model.batchnorm=post"),
    "nesterov_cosine": (
        "optim.momentum=0.5", "optim.nesterov=true", "optim.schedule=cosine", "optim.warmup_steps=5",
        "model.n_layers=2", "model.dropout=0.2",
    ),
}  # fmt: skip


def checkpoint(run_dir: Path, name: str = "last") -> dict[str, Any]:
    loaded = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)
    assert isinstance(loaded, dict)
    return loaded


def essence(run_dir: Path) -> dict[str, Any]:
    """All of last.ckpt that training goes on from."""
    loaded = checkpoint(run_dir)
    return {
        key: loaded[key]
        for key in (
            "global_step",
            "state_dict",
            "optimizer_states",
            "NamesDataModule",
            "makemore_pl",
            "hyper_parameters",
        )
    }


def assert_same_bits(a: Any, b: Any, path: str = "checkpoint") -> None:
    assert type(a) is type(b), path
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, path
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same_bits(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (each_a, each_b) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(each_a, each_b, f"{path}[{i}]")
    else:
        assert a == b, path


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def fit(config: Config) -> Recorder:
    trainer, module, datamodule = build(config)
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    trainer.fit(module, datamodule=datamodule)
    return recorder


# --- a whole run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(small: Compose, tmp_path: Path, experiment: str) -> None:
    config = small(f"+experiment={experiment}", "trainer.max_steps=12", "trainer.val_check_interval=5")
    metrics = run(config)
    run_dir = tmp_path / "run"
    assert json.loads((run_dir / "metrics.json").read_text()) == metrics
    assert metrics["experiment"] == experiment
    assert metrics["steps"] == 12
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, int | float))
    assert checkpoint(run_dir)["global_step"] == 12
    assert (run_dir / "checkpoints" / "best.ckpt").is_file()
    assert load_config(run_dir) == config


def test_metrics(small: Compose, tmp_path: Path) -> None:
    metrics = run(small("model.batchnorm=pre", "trainer.max_steps=30", "seed=11"))
    assert set(metrics) >= {
        "train/loss", "val/loss", "test/loss", "val/perplexity", "initial_loss", "steps", "seconds",
        "steps_per_second", "parameters", "experiment", "seed", "uniform_loss",
    }  # fmt: skip
    module = load_module(tmp_path / "run" / "checkpoints" / "last.ckpt")
    _, _, datamodule = build(small())
    for split, (x, y) in datamodule.examples.items():
        # float32 logits, added up in another order
        losses = [-module(each[None])[0].log_softmax(0)[target].item() for each, target in zip(x, y, strict=True)]
        assert metrics[f"{split}/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5), split
    assert metrics["val/perplexity"] == pytest.approx(math.exp(metrics["val/loss"]), rel=1e-12)
    assert metrics["uniform_loss"] == pytest.approx(math.log(len(module.vocabulary)), rel=1e-12)
    assert metrics["seed"] == 11
    # vocabulary of 11: embedding 11*4, hidden 12*12, BatchNorm 2*12, output 12*11 + 11
    assert len(module.vocabulary) == 11
    assert metrics["parameters"] == 44 + 144 + 24 + 143
    assert metrics["steps_per_second"] == pytest.approx(30 / metrics["seconds"], rel=0.05)  # both are rounded


def test_perplexity_and_loss_of_the_last_validation_are_those_of_the_metrics(small: Compose) -> None:
    config = small("trainer.max_steps=15", "model.batchnorm=pre")
    trainer, module, datamodule = build(config)
    trainer.fit(module, datamodule=datamodule)
    loss = split_loss(module.model, *datamodule.examples["val"])
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(loss, rel=1e-5)
    assert trainer.callback_metrics["val/perplexity"].item() == pytest.approx(math.exp(loss), rel=1e-5)


def test_training_lowers_the_loss(small: Compose) -> None:
    metrics = run(small("trainer.max_steps=300"))
    assert metrics["train/loss"] < metrics["uniform_loss"] - 0.3


def test_command_line(train_script: Callable[..., Finished], tmp_path: Path, words_file: Path) -> None:
    code, out, err = train_script(
        "+experiment=batchnorm", f"data.path={words_file}", "trainer.max_steps=25", "trainer.engine=eager", "seed=5"
    )
    assert code == 0, err
    assert "Traceback" not in err
    assert "Warning" not in err
    assert "deprecated" not in err
    (run_dir,) = (tmp_path / "outputs" / "batchnorm").iterdir()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert (metrics["experiment"], metrics["seed"], metrics["steps"]) == ("batchnorm", 5, 25)
    for key in ("train/loss", "val/loss", "test/loss", "val/perplexity", "initial_loss", "uniform_loss"):
        assert f"{metrics[key]:.4f}" in out, key
    assert "ln V" in out
    shown = run_dir.relative_to(tmp_path)
    assert re.search(rf"watch live   .*tensorboard --logdir {shown}\n", out)
    assert re.search(rf"TensorBoard  .*tensorboard --logdir {shown}\n +and open the address in dashboard.url", out)
    assert out.index(f"written to   {shown}\n") < out.index("ln V") < out.index(f"page         {shown}/report.html\n")
    assert max(map(len, out.splitlines())) < 250, "the address with its pins is in a file"
    assert (run_dir / "dashboard.url").read_text().startswith("http://localhost:6006/?pinnedCards=")
    assert "<title>batchnorm" in (run_dir / "report.html").read_text()
    assert list(run_dir.glob("events.out.tfevents.*"))
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert (run_dir / ".hydra" / "overrides.yaml").is_file()
    assert load_config(run_dir).data.path == str(words_file)
    assert "Training on the CPU: there is no GPU." in out + err or torch.cuda.is_available()


def test_settings_without_effect_are_said(small: Compose, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="makemore_pl"):
        run(small("model.bn_momentum=0.5", "trainer.max_steps=2"))
    assert "Without effect: model.bn_momentum: there is no BatchNorm." in caplog.messages


def test_write_atomically(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_same_seed_same_bits(small: Compose, tmp_path: Path, network: str) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(small(*NETWORKS[network], f"seed={seed}", "trainer.max_steps=30", run_dir=tmp_path / name))
    assert_same_bits(essence(tmp_path / "a"), essence(tmp_path / "b"))
    a, c = (checkpoint(tmp_path / name)["state_dict"] for name in "ac")
    assert all(not torch.equal(a[name], c[name]) for name in a if "num_batches" not in name)


@pytest.mark.parametrize("network", NETWORKS)
def test_watching_changes_no_bit(small: Compose, tmp_path: Path, network: str) -> None:
    for watch_every in (1, 7, 500):
        watching = (f"trainer.watch_every={watch_every}", "trainer.max_steps=60")
        run(small(*NETWORKS[network], *watching, run_dir=tmp_path / f"{watch_every}"))
    assert_same_bits(essence(tmp_path / "1"), essence(tmp_path / "7"))
    assert_same_bits(essence(tmp_path / "1"), essence(tmp_path / "500"))


@pytest.mark.parametrize("network", NETWORKS)
def test_validating_changes_no_bit(small: Compose, tmp_path: Path, network: str) -> None:
    for interval in (10, 1000):
        often = (f"trainer.val_check_interval={interval}", "trainer.max_steps=60")
        run(small(*NETWORKS[network], *often, run_dir=tmp_path / f"{interval}"))
    assert_same_bits(essence(tmp_path / "10"), essence(tmp_path / "1000"))


def test_logging_changes_no_bit(small: Compose, tmp_path: Path) -> None:
    for logger in ("none", "tensorboard"):
        run(small(*NETWORKS["adamw_dropout_batchnorm"], f"logger={logger}", run_dir=tmp_path / logger))
    assert_same_bits(essence(tmp_path / "none"), essence(tmp_path / "tensorboard"))


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_steps", "watch_every", "val_check_interval", "watched", "validated"),
    [
        (1, 500, 10_000, [0], [0]),
        (2, 500, 10_000, [0, 1], [1]),
        (3, 100, 1, [0, 1, 2], [1, 2]),
        (7, 7, 3, [0, 1, 2, 3, 5, 6], [3, 6]),
        (20, 1, 8, list(range(20)), [8, 16, 19]),
        (501, 500, 250, [0, 1, 2, 5, 10, 20, 50, 100, 200, 250, 500], [250, 500]),
        (
            1234, 100, 600,
            [0, 1, 2, 5, 10, 20, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1100, 1200, 1233],
            [600, 1200, 1233],
        ),
    ],
)  # fmt: skip
def test_steps_that_callbacks_see(
    small: Compose, max_steps: int, watch_every: int, val_check_interval: int, watched: list[int], validated: list[int]
) -> None:
    config = small(
        f"trainer.max_steps={max_steps}", f"trainer.watch_every={watch_every}", "model.n_hidden=3",
        f"trainer.val_check_interval={val_check_interval}",
    )  # fmt: skip
    trainer, module, datamodule = build(config)
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    trainer.fit(module, datamodule=datamodule)
    assert trainer.global_step == max_steps
    assert recorder.after_batch == watched
    assert recorder.before_optimizer_step == watched
    assert recorder.validated == validated


def test_a_checkpoint_at_each_validation(small: Compose, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    halt = "+callbacks.halt={_target_:probes.Halt,step:25}"
    with pytest.raises(HaltedError):
        run(small("trainer.val_check_interval=10", "trainer.watch_every=1", "trainer.max_steps=40", halt))
    assert checkpoint(run_dir)["global_step"] == 21
    assert not (run_dir / "metrics.json").exists(), "an interrupted run is not a finished one"


@pytest.mark.parametrize("experiment", ["kaiming", "deep_batchnorm"])
def test_validation_loss_is_of_the_whole_split(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str
) -> None:
    monkeypatch.setattr(data, "VALIDATION_BATCH", 7)  # and the last of them shorter
    config = small(f"+experiment={experiment}", "logger=jsonl", "trainer.max_steps=30")
    metrics = run(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()]
    logged = [line["values"] for line in lines if "val/loss" in line.get("values", {})][-1]
    assert logged["val/loss"] == pytest.approx(metrics["val/loss"], rel=1e-6)
    assert logged["val/perplexity"] == pytest.approx(metrics["val/perplexity"], rel=1e-5)


def test_last_is_last_and_best_is_best(small: Compose, tmp_path: Path) -> None:
    # so many neurons on 48 words that the validation loss turns upwards
    config = small(
        "model.n_hidden=64", "optim.schedule=constant", "optim.lr=0.3", "trainer.max_steps=401",
        "trainer.val_check_interval=50", "+callbacks.losses={_target_:probes.ValidationLosses}",
    )  # fmt: skip
    trainer, module, datamodule = build(config)
    trainer.fit(module, datamodule=datamodule)
    (probe,) = (each for each in trainer.callbacks if hasattr(each, "by_step"))
    best = min(probe.by_step, key=probe.by_step.get)
    assert probe.by_step[400] > probe.by_step[best], "this test needs a validation loss that rises again"
    assert checkpoint(tmp_path / "run")["global_step"] == 401
    assert checkpoint(tmp_path / "run", "best")["global_step"] == best + 1
    assert probe.last_saved == {step: step + 1 for step in probe.by_step}
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OptimConfig(schedule="constant"), {0: 0.1, 99: 0.1}),
        (OptimConfig(), {0: 0.1, 49: 0.1, 50: 0.01, 99: 0.01}),
        (OptimConfig(decay_at=0.0, decay_factor=0.5), {0: 0.05, 99: 0.05}),
        (OptimConfig(decay_at=1.0), {99: 0.1}),
        # 0.55 * 100 is 55.00000000000001 in binary
        (OptimConfig(decay_at=0.55), {54: 0.1, 55: 0.01}),
        (OptimConfig(warmup_steps=4), {0: 0.025, 1: 0.05, 2: 0.075, 3: 0.1, 4: 0.1, 50: 0.01}),
        (OptimConfig(schedule="cosine", lr=1.0), {0: 1.0, 33: 0.775, 66: 0.325, 99: 0.1}),
        (
            OptimConfig(schedule="cosine", lr=1.0, decay_factor=0.0, warmup_steps=9),
            {0: 1 / 9, 8: 1, 9: 1, 54: 0.5, 99: 0},
        ),
    ],
)
def test_learning_rate_by_hand(config: OptimConfig, expected: dict[int, float]) -> None:
    for step, lr in expected.items():
        assert learning_rate(step, config, max_steps=100) == pytest.approx(lr, rel=1e-12, abs=1e-15), step


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("watch_every", [1, 500])
def test_resumed_equals_uninterrupted(small: Compose, tmp_path: Path, network: str, watch_every: int) -> None:
    length = ("trainer.max_steps=60", "trainer.val_check_interval=13", f"trainer.watch_every={watch_every}")
    overrides = (*NETWORKS[network], *length)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = run(small(*overrides, run_dir=whole))
    with pytest.raises(HaltedError):
        run(small(*overrides, "+callbacks.halt={_target_:probes.Halt,step:40}", run_dir=broken))
    assert checkpoint(broken)["global_step"] == 40  # validation after step 39
    torch.manual_seed(999)  # another process
    got = run(small(*overrides, f"ckpt_path={broken / 'checkpoints' / 'last.ckpt'}", run_dir=broken))
    assert_same_bits(essence(broken), essence(whole))
    timing = ("seconds", "steps_per_second")
    assert {k: v for k, v in got.items() if k not in timing} == {k: v for k, v in expected.items() if k not in timing}
    assert json.loads((broken / "metrics.json").read_text()) == got


def test_compiled_runs(small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled run has the bits of a watched, a resumed, and a plain Lightning run, as an eager one has."""
    overrides = (
        *NETWORKS["adamw_dropout_batchnorm"], "trainer.max_steps=60", "trainer.val_check_interval=13",
        "trainer.watch_every=8", "trainer.engine=compile",
    )  # fmt: skip
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(compiling, "_packages", {})
    run(small(*overrides, run_dir=tmp_path / "bare"))
    assert not list((tmp_path / "tmp").glob("aotinductor*")), "a kill would leave it"
    run(small(*overrides, "callbacks=diagnostics", "logger=jsonl", run_dir=tmp_path / "watched"))
    assert_same_bits(essence(tmp_path / "watched"), essence(tmp_path / "bare"))
    broken = tmp_path / "broken"
    with pytest.raises(HaltedError):
        run(small(*overrides, "+callbacks.halt={_target_:probes.Halt,step:40}", run_dir=broken))
    run(small(*overrides, f"ckpt_path={broken / 'checkpoints' / 'last.ckpt'}", run_dir=broken))
    assert_same_bits(essence(broken), essence(tmp_path / "bare"))
    run(small(*overrides, "trainer.watch_every=1", "trainer.engine=auto", run_dir=tmp_path / "plain"))
    ours, theirs = checkpoint(tmp_path / "bare"), checkpoint(tmp_path / "plain")
    assert torch.equal(ours["NamesDataModule"]["generator"], theirs["NamesDataModule"]["generator"])
    for name, tensor in ours["state_dict"].items():
        torch.testing.assert_close(tensor, theirs["state_dict"][name], rtol=1e-3, atol=1e-4, msg=name)


def test_resumed_twice(small: Compose, tmp_path: Path) -> None:
    overrides = (*NETWORKS["adamw_dropout_batchnorm"], "trainer.max_steps=60", "trainer.val_check_interval=10")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(small(*overrides, run_dir=whole))
    resume = f"ckpt_path={broken / 'checkpoints' / 'last.ckpt'}"
    for step, more in ((15, ()), (45, (resume,))):
        with pytest.raises(HaltedError):
            run(small(*overrides, *more, f"+callbacks.halt={{_target_:probes.Halt,step:{step}}}", run_dir=broken))
    run(small(*overrides, resume, run_dir=broken))
    assert_same_bits(essence(broken), essence(whole))


def test_resumed_into_another_directory(small: Compose, tmp_path: Path) -> None:
    overrides = (*NETWORKS["batchnorm_momentum"], "trainer.max_steps=60", "trainer.val_check_interval=10")
    run(small(*overrides, run_dir=tmp_path / "whole"))
    with pytest.raises(HaltedError):
        run(small(*overrides, "+callbacks.halt={_target_:probes.Halt,step:40}", run_dir=tmp_path / "broken"))
    before = (tmp_path / "broken" / "checkpoints" / "last.ckpt").read_bytes()
    resume = f"ckpt_path={tmp_path / 'broken' / 'checkpoints' / 'last.ckpt'}"
    run(small(*overrides, resume, run_dir=tmp_path / "new"))
    assert_same_bits(essence(tmp_path / "new"), essence(tmp_path / "whole"))
    assert (tmp_path / "new" / "checkpoints" / "best.ckpt").is_file()
    assert (tmp_path / "broken" / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("network", ["batchnorm_momentum", "adamw_dropout_batchnorm"])
def test_finished_run_trained_for_longer(small: Compose, tmp_path: Path, network: str) -> None:
    overrides = (*NETWORKS[network], "optim.schedule=constant", "trainer.watch_every=20")
    run(small(*overrides, "trainer.max_steps=50", run_dir=tmp_path / "whole"))
    before = run(small(*overrides, "trainer.max_steps=23", run_dir=tmp_path / "longer"))
    resume = f"ckpt_path={tmp_path / 'longer' / 'checkpoints' / 'last.ckpt'}"
    metrics = run(small(*overrides, resume, "trainer.max_steps=50", run_dir=tmp_path / "longer"))
    assert_same_bits(essence(tmp_path / "longer"), essence(tmp_path / "whole"))
    assert metrics["steps"] == 50
    assert metrics["seconds"] > before["seconds"]
    assert metrics["steps_per_second"] == pytest.approx(50 / metrics["seconds"], rel=0.05)  # both are rounded


def test_resumed_with_nothing_left_to_do(small: Compose, tmp_path: Path) -> None:
    first = run(small())
    before = essence(tmp_path / "run")
    again = run(small(f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"))
    assert {k: again[k] for k in ("train/loss", "val/loss", "test/loss", "steps", "initial_loss")} == {
        k: first[k] for k in ("train/loss", "val/loss", "test/loss", "steps", "initial_loss")
    }
    assert_same_bits(essence(tmp_path / "run"), before)


def test_a_run_being_resumed_is_not_finished(small: Compose, tmp_path: Path) -> None:
    """metrics.json marks a finished run, so it must go before a longer one begins in its place."""
    run(small("trainer.max_steps=20"))
    resume = f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    with pytest.raises(HaltedError):
        run(small(resume, "trainer.max_steps=60", "+callbacks.halt={_target_:probes.Halt,step:40}"))
    assert not (tmp_path / "run" / "metrics.json").exists()


# --- refused ---------------------------------------------------------------------------------------------------------


def refused(config: Config) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (each test compares the sentence)
        run(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def finished(small: Compose, tmp_path: Path) -> Path:
    """last.ckpt of a finished run of 20 steps."""
    run(small(run_dir=tmp_path / "finished"))
    return tmp_path / "finished" / "checkpoints" / "last.ckpt"


def test_finished_directory(small: Compose, finished: Path) -> None:
    run_dir = finished.parents[1]
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert refused(small(run_dir=run_dir)) == (
        f"{run_dir} already holds a finished run: choose another hydra.run.dir, or, with a larger trainer.max_steps, "
        f"resume it with ckpt_path={finished}"
    )
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_an_interrupted_run_is_not_started_over(small: Compose, finished: Path) -> None:
    run_dir = finished.parents[1]
    (run_dir / "metrics.json").unlink()
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert refused(small(run_dir=run_dir)) == (
        f"{run_dir} holds an interrupted run: choose another hydra.run.dir, or resume it with ckpt_path={finished}"
    )
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_checkpoint_of_another_vocabulary(small: Compose, finished: Path, tmp_path: Path) -> None:
    words = tmp_path / "others.txt"
    words.write_text("\n".join([*WORDS, "xyz"]))
    assert refused(small(f"ckpt_path={finished}", f"data.path={words}")) == (
        f"{finished} has another vocabulary, 'abdefilnor', than these words, 'abdefilnorxyz'."
    ).replace("'abdefilnor", "'" + "".join(sorted(set("".join(WORDS)))))


def test_checkpoint_of_other_words(small: Compose, finished: Path, tmp_path: Path) -> None:
    words = tmp_path / "others.txt"
    words.write_text("\n".join(reversed(WORDS)))  # the same characters
    assert refused(small(f"ckpt_path={finished}", f"data.path={words}")) == (
        f"{finished} was trained on other words than these."
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.n_hidden=13", "model.n_hidden=12 (here 13)"),
        ("model.batchnorm=pre", "model.batchnorm=none (here pre)"),
        ("model.n_layers=2", "model.n_layers=1 (here 2)"),
        ("data.block_size=4", "data.block_size=3 (here 4)"),
        ("optim.name=adam", "optim.name=sgd (here adam)"),
        ("seed=4", "seed=2147483647 (here 4)"),
        # these live in the optimizer's state, where the checkpoint's would silently win
        ("optim.momentum=0.5", "optim.momentum=0.0 (here 0.5)"),
        ("optim.weight_decay=0.1", "optim.weight_decay=0.0 (here 0.1)"),
    ],
)
def test_checkpoint_of_another_network(small: Compose, finished: Path, override: str, said: str) -> None:
    assert refused(small(f"ckpt_path={finished}", override)) == f"{finished} is of another run: {said}."


def test_resumed_with_another_learning_rate(small: Compose, finished: Path, tmp_path: Path) -> None:
    """A pure function of the step and the config: it may change, and then it does."""
    run(small(f"ckpt_path={finished}", "trainer.max_steps=30", "optim.lr=0.5", "optim.schedule=constant"))
    assert checkpoint(tmp_path / "run")["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5


def test_checkpoint_past_the_end(small: Compose, finished: Path) -> None:
    assert refused(small(f"ckpt_path={finished}", "trainer.max_steps=19")) == (
        f"{finished} is at step 20, past trainer.max_steps=19."
    )


def test_missing_checkpoint(small: Compose, tmp_path: Path) -> None:
    path = tmp_path / "nothing.ckpt"
    assert refused(small(f"ckpt_path={path}")) == f"There is no checkpoint {path}."
    assert not (tmp_path / "run").exists(), "refused before any work"


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_truncated_checkpoint(small: Compose, finished: Path, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "truncated.ckpt"
    content = finished.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert refused(small(f"ckpt_path={path}")).startswith(f"{path} is not a checkpoint, or is truncated or damaged (")


def test_not_a_checkpoint(small: Compose, tmp_path: Path, words_file: Path) -> None:
    assert refused(small(f"ckpt_path={words_file}")).startswith(
        f"{words_file} is not a checkpoint, or is truncated or damaged ("
    )
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    assert refused(small(f"ckpt_path={path}")) == f"{path} is not a checkpoint of makemore_pl."
    torch.save([1, 2], path)
    assert refused(small(f"ckpt_path={path}")) == f"{path} is not a checkpoint of makemore_pl."


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_code_in_a_checkpoint_is_not_executed(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.ckpt"
    torch.save(torch.load(finished, weights_only=True) | {"extra": Malicious()}, path)
    assert refused(small(f"ckpt_path={path}")).startswith(f"{path} is not a checkpoint")
    path.write_bytes(pickle.dumps(Malicious()))
    assert refused(small(f"ckpt_path={path}")).startswith(f"{path} is not a checkpoint")
    assert not (tmp_path / "executed").exists()


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a checkpoint"):
        read_checkpoint(path)


def test_checkpoint_holds_tensors_and_numbers_only(small: Compose, tmp_path: Path) -> None:
    run(small(*NETWORKS["adam_clipped"]))
    for name in ("last", "best"):
        assert checkpoint(tmp_path / "run", name)["state_dict"]  # loaded with weights_only=True


def test_loaded_module_is_the_trained_one(small: Compose, tmp_path: Path) -> None:
    config = small("model.batchnorm=pre_output", "model.n_layers=2", "model.dropout=0.3")
    trainer, module, datamodule = build(config)
    trainer.fit(module, datamodule=datamodule)
    loaded = load_module(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert not loaded.training
    x, _ = datamodule.examples["test"]
    module.eval()
    assert torch.equal(loaded(x), module(x))
    assert loaded.vocabulary == datamodule.vocabulary


# --- not finite ------------------------------------------------------------------------------------------------------


def stopped(config: Config) -> str:
    with pytest.raises(FloatingPointError) as caught:
        run(config)
    assert not (Path(config.run_dir) / "metrics.json").exists()
    return str(caught.value)


EXPLODING = ("optim.lr=1e30", "model.activation=identity", "model.n_layers=2", "trainer.max_steps=60")


def test_exploding_training_stops_at_the_same_step_however_watched(small: Compose, tmp_path: Path) -> None:
    said = {stopped(small(*EXPLODING, f"trainer.watch_every={k}", run_dir=tmp_path / f"{k}")) for k in (1, 7, 500)}
    assert len(said) == 1
    assert said.pop().startswith(("step 1: ", "step 2: "))


def test_a_run_that_ends_between_two_watched_steps_tells_why(small: Compose, tmp_path: Path) -> None:
    stopped(small(*EXPLODING, "trainer.watch_every=500", "logger=jsonl", run_dir=tmp_path / "run"))
    assert "not_finite" in {each.id for each in examine_run(tmp_path / "run").findings}


def test_diverged_but_finite(small: Compose, tmp_path: Path) -> None:
    """tanh holds the activations, so the loss grows beyond where its exponential is a float."""
    metrics = run(small("optim.lr=1e5"))
    assert metrics["val/loss"] > 1_000

    def no_such_json(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "run" / "metrics.json").read_text()
    assert json.loads(text, parse_constant=no_such_json)["steps"] == 20  # Infinity and NaN are not JSON


@pytest.mark.parametrize(
    ("parameter", "named"),
    [
        ("model.embedding.weight", "the parameter embedding.weight"),
        ("model.layers.0.linear.weight", "the parameter layers.0.linear.weight"),
        ("model.output.linear.bias", "the parameter output.linear.bias"),
    ],
)
@pytest.mark.parametrize("watch_every", [1, 10])
def test_poisoned_weights_are_named_and_the_last_checkpoint_is_good(
    small: Compose, tmp_path: Path, parameter: str, named: str, watch_every: int
) -> None:
    config = small(
        "trainer.max_steps=60", "trainer.val_check_interval=20", f"trainer.watch_every={watch_every}",
        "model.output_bias=1",
        f"+callbacks.poison={{_target_:probes.Poison,step:30,parameter:{parameter}}}",
    )  # fmt: skip
    assert stopped(config) == f"step 31: {named} is not finite."
    last = checkpoint(tmp_path / "run")
    assert last["global_step"] == 21
    assert all(torch.isfinite(tensor).all() for tensor in last["state_dict"].values())
    assert load_module(tmp_path / "run" / "checkpoints" / "last.ckpt").vocabulary.characters


def test_poison_found_by_the_validation(small: Compose, tmp_path: Path) -> None:
    config = small(
        "trainer.max_steps=60", "trainer.val_check_interval=10",
        "+callbacks.poison={_target_:probes.Poison,step:20,parameter:model.output.linear.weight}",
    )  # fmt: skip
    assert stopped(config) == "step 20: the validation loss is not finite."
    assert checkpoint(tmp_path / "run")["global_step"] == 11


def test_one_chunk_that_is_not_finite_is_not_averaged_away(small: Compose) -> None:
    _, module, datamodule = build(small())
    x, y = datamodule.examples["val"]
    module.eval()
    with torch.no_grad():
        module.validation_step((x, y), 0)
        module.model.output.linear.bias[0] = float("nan")
        module.validation_step((x, y), 1)
    assert not torch.isfinite(module.val_loss.compute())


def test_not_finite_is_one_sentence_for_the_user(small: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.environ.get("HYDRA_FULL_ERROR")
    with one_sentence():
        assert os.environ.get("HYDRA_FULL_ERROR") == before, "a process that this one starts shows sentences too"
    with pytest.raises(SystemExit) as caught, one_sentence(), hydra_raises():
        run(small(*EXPLODING))
    assert caught.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: step ")
    assert os.environ.get("HYDRA_FULL_ERROR") == before


# --- loggers ---------------------------------------------------------------------------------------------------------


def events(run_dir: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: {event.step: event.value for event in accumulator.Scalars(tag)} for tag in accumulator.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_events(small: Compose, tmp_path: Path) -> None:
    config = small(
        "logger=tensorboard", "trainer.max_steps=45", "trainer.watch_every=20", "trainer.val_check_interval=30",
        "optim.warmup_steps=3", "+callbacks.log={_target_:probes.LogOnTheWay}",
    )  # fmt: skip
    metrics = run(config)
    scalars = events(tmp_path / "run")
    watched = [0, 1, 2, 5, 10, 20, 30, 40, 44]
    assert list(scalars["train/loss"]) == watched
    assert list(scalars["lr"]) == watched
    assert list(scalars["val/loss"]) == [30, 44]
    assert scalars["train/loss"][0] == pytest.approx(metrics["initial_loss"], rel=1e-6)  # events are float32
    assert scalars["val/loss"][44] == pytest.approx(metrics["val/loss"], rel=1e-5)
    assert scalars["val/perplexity"][44] == pytest.approx(metrics["val/perplexity"], rel=1e-5)
    assert scalars["lr"][0] == pytest.approx(0.1 / 3, rel=1e-6)
    assert scalars["lr"][44] == pytest.approx(0.01, rel=1e-6)
    # Lightning's own log() has the same x-axis
    assert scalars["true_step"] == {step: float(step) for step in watched}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_events_of_a_resumed_run_go_on_at_the_true_step(small: Compose, tmp_path: Path) -> None:
    overrides = (
        "logger=tensorboard", "trainer.max_steps=45", "trainer.watch_every=10", "trainer.val_check_interval=15",
        "+callbacks.log={_target_:probes.LogOnTheWay}",
    )  # fmt: skip
    run(small(*overrides, run_dir=tmp_path / "whole"))
    with pytest.raises(HaltedError):
        run(small(*overrides, "+callbacks.halt={_target_:probes.Halt,step:25}"))
    run(small(*overrides, f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"))
    whole, resumed = events(tmp_path / "whole"), events(tmp_path / "run")
    assert resumed == whole
    assert resumed["true_step"] == {step: float(step) for step in whole["train/loss"]}


# --- choices ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_where_there_is_none() -> None:
    with pytest.raises(ValueError, match=r"^trainer.accelerator=gpu: torch finds no GPU here; use trainer=cpu or"):
        choose_accelerator(TrainerConfig(accelerator="gpu"), parameters=10, batch_size=32)
    assert choose_accelerator(TrainerConfig(accelerator="auto"), parameters=10**9, batch_size=32) == "cpu"


def test_what_makes_every_step_watched_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="makemore_pl"):
        assert choose_watch_every(TrainerConfig(precision="16-mixed", watch_every=500)) == 1
    assert caplog.messages == ["Every step is watched, as in plain Lightning, because of trainer.precision=16-mixed."]
    assert choose_watch_every(TrainerConfig(watch_every=500, precision="bf16-mixed")) == 500
    assert choose_watch_every(TrainerConfig(watch_every=500)) == 500
    assert choose_watch_every(TrainerConfig(watch_every=500, devices=2)) == 1


def test_engine(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert choose_engine(TrainerConfig(), "cpu") == "compile"
    assert choose_engine(TrainerConfig(max_steps=2_000), "cpu") == "eager"
    assert choose_engine(TrainerConfig(max_steps=2_000, engine="compile"), "cpu") == "compile"
    assert choose_engine(TrainerConfig(engine="eager"), "cpu") == "eager"
    assert choose_engine(TrainerConfig(watch_every=1), "cpu") == "eager"
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="makemore_pl"):
        assert choose_engine(TrainerConfig(max_steps=2_000), "cpu") == "eager"
        assert caplog.messages == [], "too short a run to compile needs no compiler"
        assert choose_engine(TrainerConfig(), "cpu") == "eager"
    assert caplog.messages == ["There is no C++ compiler (CXX or g++): unwatched steps run in the slower engine=eager."]
    with pytest.raises(ValueError, match=r"^trainer\.engine=compile: there is no C\+\+ compiler"):
        choose_engine(TrainerConfig(engine="compile"), "cpu")
    assert choose_engine(TrainerConfig(max_steps=2_000, engine="record"), "gpu") == "record"
    with pytest.raises(ValueError, match=r"^trainer\.engine=record needs a GPU"):
        choose_engine(TrainerConfig(engine="record"), "cpu")


# --- interrupted -----------------------------------------------------------------------------------------------------

SIGNALLED = (
    *NETWORKS["adamw_dropout_batchnorm"], "trainer.max_steps=60", "trainer.val_check_interval=20",
    "trainer.watch_every=7", "logger=jsonl", "callbacks=diagnostics",
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uninterrupted")


@pytest.mark.parametrize(("number", "at"), [("SIGINT", 5), ("SIGTERM", 20), ("SIGHUP", 35), ("SIGINT", 59)])
def test_a_signal_saves_where_the_run_stands(
    small: Compose, tmp_path: Path, uninterrupted: Path, number: str, at: int
) -> None:
    """Before the first validation, at one, after one, at the last step; going on gives the bits of a whole run."""
    if not (uninterrupted / "metrics.json").exists():
        run(small(*SIGNALLED, run_dir=uninterrupted))
    handlers = [signal.getsignal(each) for each in SIGNALS]
    sent = signal.Signals[number]
    with pytest.raises(Stopped, match=rf"^stopped at step {at + 1}; go on with: ") as caught:
        run(small(*SIGNALLED, f"+callbacks.signal={{_target_:probes.Signal,step:{at},number:{int(sent)}}}"))
    assert caught.value.code == 128 + sent
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    run_dir = tmp_path / "run"
    assert checkpoint(run_dir)["global_step"] == at + 1
    assert checkpoint(run_dir)["epoch"] == 0
    assert not (run_dir / "metrics.json").exists()
    assert not (run_dir / "running.lock").exists()
    steps = [json.loads(line)["step"] for line in (run_dir / "diagnostics.jsonl").read_text().splitlines()]
    assert max(steps) == at
    run(small(*SIGNALLED, f"ckpt_path={run_dir / 'checkpoints' / 'last.ckpt'}"))
    assert_same_bits(essence(run_dir), essence(uninterrupted))
    assert (run_dir / "diagnostics.jsonl").read_text() == (uninterrupted / "diagnostics.jsonl").read_text()


def test_a_second_signal_ends_the_run_at_once(small: Compose, tmp_path: Path) -> None:
    twice = f"step:35,number:{int(signal.SIGINT)},times:2,apart:{1.2 * ONE}"
    with pytest.raises(Stopped, match=r"^stopped at step 21; go on with: ") as caught:
        run(small(*SIGNALLED, f"+callbacks.signal={{_target_:probes.Signal,{twice}}}"))
    assert caught.value.code == 130
    assert checkpoint(tmp_path / "run")["global_step"] == 21


def test_a_signal_to_the_process_and_to_its_group_is_one(small: Compose, tmp_path: Path) -> None:
    """`timeout` sends both."""
    twice = f"step:35,number:{int(signal.SIGTERM)},times:2"
    with pytest.raises(Stopped, match=r"^stopped at step 36; go on with: "):
        run(small(*SIGNALLED, f"+callbacks.signal={{_target_:probes.Signal,{twice}}}"))
    assert checkpoint(tmp_path / "run")["global_step"] == 36


def test_the_command_that_is_printed_goes_on(small: Compose, words_file: Path, tmp_path: Path) -> None:
    """A shell runs the command from another directory; the run directory's name must be quoted twice."""
    here = tmp_path / "it's [here], a=b ~ é"
    here.mkdir()
    shutil.copy(words_file, here / "words.txt")
    with started(
        ROOT / "scripts" / "train.py", "data.path=words.txt", *SMALL, "+callbacks.fault.how=wait",
        "trainer.max_steps=30", "hydra.run.dir=a run", cwd=here, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    ) as process:  # fmt: skip
        wait_until((here / "a run" / "checkpoints" / "last.ckpt").exists, process)
        process.send_signal(signal.SIGTERM)
        (here / "go").touch()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in err
    (line,) = (each for each in err.splitlines() if "stopped" in each)
    command = re.fullmatch(r"stopped at step \d+; go on with: (.*)", line)
    assert command
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    subprocess.run(command[1], shell=True, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert json.loads((here / "a run" / "metrics.json").read_text())["steps"] == 30


def test_a_refused_run_leaves_what_the_first_one_wrote(train_script: Callable[..., Finished], tmp_path: Path) -> None:
    """`.hydra` too, in which Hydra itself writes before anything can be refused; the log has both commands."""

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    first = ["trainer=cpu", "trainer.max_steps=20", "callbacks=none", "logger=none", "report=false"]
    assert train_script(*first, "hydra.run.dir=run").code == 0
    before = content()
    assert yaml.safe_load((tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()) == first
    last = "ckpt_path=run/checkpoints/last.ckpt"
    code, _, err = train_script(*first, "model.n_hidden=3", last, "hydra.run.dir=run")
    assert code == 1
    assert "is of another run" in err
    log = tmp_path / "run" / "train.log"
    assert content() == before | {log: log.read_bytes()}
    assert log.read_bytes().startswith(before[log])


def test_one_run_at_a_time_in_a_directory(small: Compose, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    holding = "import sys; from pathlib import Path; from makemore_pl.running.run_lock import alone_in"
    code = f"{holding}\nwith alone_in(Path(sys.argv[1])):\n    print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdin
        other.stdout.readline()
        assert refused(small()) == (f"Another process is training in {tmp_path / 'run'}: choose another hydra.run.dir.")
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["running.lock"]
        other.stdin.write(b"\n")
        other.stdin.flush()
        other.wait()
    run(small())
    assert not (tmp_path / "run" / "running.lock").exists()


def test_a_sweep_that_looks_whether_a_run_goes_on_does_not_refuse_it(tmp_path: Path) -> None:
    looking = FileLock(tmp_path / "running.lock", thread_local=False)
    looking.acquire()
    threading.Timer(0.1, looking.release).start()
    with alone_in(tmp_path):
        assert not looking.is_locked


def test_several_processes_do_not_save_at_a_signal(small: Compose, tmp_path: Path) -> None:
    config = small("trainer.max_steps=2")
    run(config)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert how_to_go_on(config, last).startswith("stopped at step 2; go on with: cd ")
    config.trainer.devices = 2
    said = how_to_go_on(config, last)
    assert said.startswith("stopped at step 2, its last validation, for several processes save nothing at a signal; go")


# --- damaged ---------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_the_weights_is_noticed(finished: Path) -> None:
    whole, saved = finished.read_bytes(), torch.load(finished, weights_only=True)["state_dict"]
    for tensor in saved.values():
        place = whole.index(tensor.numpy().tobytes())
        content = bytearray(whole)
        content[place] ^= 1
        finished.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            read_checkpoint(finished)
    rng = random.Random(0)
    for _ in range(30):  # anywhere: refused, or nothing that is read has changed
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        finished.write_bytes(content)
        with suppress(ValueError):
            assert_same_bits(read_checkpoint(finished)["state_dict"], saved)


@pytest.mark.parametrize("damage", [lambda whole: whole[:5000], lambda whole: whole.replace(b"embed", b"imbed")])
def test_a_damaged_checkpoint_falls_back_to_the_best(
    small: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    overrides = ("trainer.max_steps=60", "trainer.val_check_interval=10", *NETWORKS["adamw_dropout_batchnorm"])
    run(small(*overrides, run_dir=tmp_path / "whole"))
    with pytest.raises(HaltedError):
        run(small(*overrides, "+callbacks.halt={_target_:probes.Halt,step:30}"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(damage(last.read_bytes()))
    (last.parent / "last.ckpt.0123abcd.part").write_bytes(b"killed while it was written")
    with caplog.at_level(logging.WARNING, logger="makemore_pl"):
        run(small(*overrides, f"ckpt_path={last}"))
    (said,) = (each.getMessage() for each in caplog.records if each.name.startswith("makemore_pl"))
    assert said.startswith(f"{last} is not a checkpoint, or is truncated or damaged")
    assert "Going on from best.ckpt beside it, at step " in said
    assert_same_bits(essence(tmp_path / "run"), essence(tmp_path / "whole"))
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    for path in last.parent.iterdir():
        path.write_bytes(b"damaged")
    assert refused(small(*overrides, f"ckpt_path={last}")).startswith(f"{last} is not a checkpoint")


NEEDED = (
    "makemore_pl", "makemore_pl.dropout_generator", "global_step", "state_dict", "state_dict.model.embedding.weight",
    "hyper_parameters", "hyper_parameters.vocabulary", "hyper_parameters.model", "NamesDataModule",
    "NamesDataModule.generator", "optimizer_states", "callbacks", "loops", "loops.fit_loop",
)  # fmt: skip


def test_a_checkpoint_that_lacks_something_is_refused(small: Compose, finished: Path) -> None:
    finished.with_name("best.ckpt").unlink()
    whole = finished.read_bytes()
    for path in NEEDED:
        for instead in (None, "text", torch.zeros(2)):
            finished.write_bytes(whole)
            loaded = torch.load(finished, weights_only=True)
            parent, _, key = path.partition(".")
            content, key = (loaded[parent], key) if key else (loaded, parent)
            if instead is None:
                del content[key]
            else:
                content[key] = instead
            torch.save(loaded, finished)
            assert str(finished) in refused(small(f"ckpt_path={finished}", "trainer.max_steps=30")), (path, instead)


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("optimizer_states", []), ("optimizer_states", [{}]), ("optimizer_states", [{"state": {}, "param_groups": []}]),
        ("callbacks", {"makemore_pl.best": {"dirpath": "x"}}), ("callbacks", {"makemore_pl.best": [1]}),
        ("loops.fit_loop", {}), ("loops.fit_loop", {"state_dict": 1}),
    ],
)  # fmt: skip
def test_states_that_cannot_be_restored_are_a_sentence(
    small: Compose, finished: Path, path: str, instead: object
) -> None:
    finished.with_name("best.ckpt").unlink()
    loaded = torch.load(finished, weights_only=True)
    parent, _, key = path.partition(".")
    content, key = (loaded[parent], key) if key else (loaded, parent)
    content[key] = instead
    torch.save(loaded, finished)
    assert str(finished) in refused(small(f"ckpt_path={finished}", "trainer.max_steps=30"))


def test_checkpoints_do_not_go_through_tmpdir(small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    run(small())
    assert checkpoint(tmp_path / "run")["global_step"] == 20


# --- Lightning's own callbacks ---------------------------------------------------------------------------------------


def test_early_stopping_unchanged(small: Compose, tmp_path: Path) -> None:
    stop = "+callbacks.e={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/loss,patience:1,min_delta:9}"
    metrics = run(small(stop, "trainer.max_steps=100", "trainer.val_check_interval=10"))
    assert (metrics["steps"], metrics["stopped_by"]) == (21, "EarlyStopping")
    assert run(small(run_dir=tmp_path / "whole"))["stopped_by"] is None


def test_learning_rate_monitor_logs_the_rate_of_its_step(small: Compose, tmp_path: Path) -> None:
    monitor = "+callbacks.m={_target_:lightning.pytorch.callbacks.LearningRateMonitor}"
    config = small(monitor, "logger=jsonl", "trainer.max_steps=60", "trainer.val_check_interval=30")
    run(config)
    lines = json_lines(tmp_path / "run" / "diagnostics.jsonl")
    rates = {line["step"]: line["values"]["lr-SGD"] for line in lines if "lr-SGD" in line["values"]}
    assert list(rates) == [0, 1, 2, 3, 6, 11, 21, 31, 51], "the first step of each stride"
    assert rates == {step: learning_rate(step, config.optim, 60) for step in rates}


def test_a_checkpoint_callback_of_the_user(small: Compose, tmp_path: Path) -> None:
    target = "lightning.pytorch.callbacks.ModelCheckpoint"
    own = f"{{_target_:{target},dirpath:{tmp_path / 'own'},monitor:val/loss,save_top_k:3}}"
    run(small(f"+callbacks.c={own}", "trainer.max_steps=60", "trainer.val_check_interval=20"))
    assert len(list((tmp_path / "own").iterdir())) == 3


def test_callbacks_that_act_on_each_step_see_each_step(small: Compose, caplog: pytest.LogCaptureFixture) -> None:
    averaging = "+callbacks.e={_target_:lightning.pytorch.callbacks.EMAWeightAveraging}"
    length = ("trainer.max_steps=12", "trainer.val_check_interval=5")
    with caplog.at_level(logging.WARNING, logger="makemore_pl"):
        unwatched = run(small(averaging, *length))
    said = "Every step is watched, as in plain Lightning, because of the callback EMAWeightAveraging."
    assert caplog.messages == [said]
    shutil.rmtree(Path(small().run_dir))
    assert run(small(averaging, *length, "trainer.watch_every=1"))["val/loss"] == unwatched["val/loss"]
    assert not acts_on_every_step(LearningRateMonitor())
    assert not acts_on_every_step(UpdateStats())
    assert acts_on_every_step(LambdaCallback(on_train_batch_end=print))
    assert not acts_on_every_step(TQDMProgressBar())
    assert not acts_on_every_step(ModelCheckpoint(monitor="val/loss", save_top_k=3))
    assert acts_on_every_step(ModelCheckpoint(every_n_train_steps=50)), "strides pass over multiples of 50"

    class Impatient(Timer):
        def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
            """A hook of a user's class can do anything."""

    assert acts_on_every_step(Impatient())


# --- the rest --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_shows_each_point_once(small: Compose, tmp_path: Path) -> None:
    overrides = ("logger=tensorboard", "trainer.max_steps=45", "trainer.watch_every=5", "trainer.val_check_interval=15")
    threads = threading.active_count()
    with pytest.raises(HaltedError):
        run(small(*overrides, "+callbacks.halt={_target_:probes.Halt,step:28}"))
    run(small(*overrides, f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"))
    accumulator = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0})
    accumulator.Reload()
    for tag in ("train/loss", "val/loss"):
        steps = [event.step for event in accumulator.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
    assert len(list((tmp_path / "run").glob("events*"))) == 2, "one a leg"
    assert threading.active_count() == threads


@pytest.mark.parametrize("watch_every", [1, 7, 500])
def test_a_parameter_that_tanh_hides_is_found(small: Compose, watch_every: int) -> None:
    """Infinite biases saturate tanh: the loss and its gradients stay finite."""
    poison = "+callbacks.poison={_target_:probes.Poison,step:9,parameter:model.layers.0.linear.bias}"
    how = (f"trainer.watch_every={watch_every}", "model.hidden_bias=1", "trainer.max_steps=30")
    said = stopped(small(poison, *how, "trainer.val_check_interval=25"))
    assert re.fullmatch(r"step \d+: the parameter layers.0.linear.bias is not finite\.", said)
    if watch_every == 1:
        assert said.startswith("step 10: ")


def test_a_run_that_has_diverged_says_so_once(
    small: Compose, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with caplog.at_level(logging.WARNING, logger="makemore_pl"):
        run(small("optim.lr=1e5"))
        assert caplog.messages[-1].startswith("The run has diverged: its validation loss is ")
        caplog.clear()
        run(small("optim.lr=1e5", "callbacks=diagnostics", "trainer.max_steps=200", run_dir=tmp_path / "watched"))
    assert not [each for each in caplog.messages if "diverged" in each]
    lines = capsys.readouterr().out.replace(str(tmp_path), "").splitlines()
    assert len([line for line in lines if "diverged" in line]) == 1


# --- several processes -----------------------------------------------------------------------------------------------


def test_two_processes(train_script: Callable[..., Finished], words_file: Path, tmp_path: Path) -> None:
    """Each drops units of its own, the loss that is logged is the mean of both, and both go on where they stood."""
    arguments = [
        f"data.path={words_file}", "data.batch_size=8", "model.n_hidden=12", "model.dropout=0.5", "trainer=cpu",
        "trainer.devices=2", "trainer.max_steps=6", "trainer.val_check_interval=2", "callbacks=none", "logger=jsonl",
        "report=false", "+callbacks.ranks._target_=probes.Ranks",
        "+callbacks.all={_target_:lightning.pytorch.callbacks.ModelCheckpoint,dirpath:all,filename:'{step}',"
        "save_top_k:-1,auto_insert_metric_name:false}",
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    code, _, err = train_script(*arguments, "hydra.run.dir=whole", PYTHONPATH=path)
    assert code == 0, err
    seen = [json_lines(tmp_path / "whole" / f"rank{rank}.jsonl") for rank in (0, 1)]
    lines = json_lines(tmp_path / "whole" / "diagnostics.jsonl")
    logged = [line["values"]["train/loss"] for line in lines if "train/loss" in line["values"]]
    assert len(logged) == 6
    for loss, first, second in zip(logged, *seen, strict=True):
        assert first["loss"] != second["loss"]
        assert loss == pytest.approx((first["loss"] + second["loss"]) / 2, rel=1e-6)
        assert first["next"] != second["next"]
    code, _, err = train_script(*arguments, "hydra.run.dir=rest", "ckpt_path=all/3.ckpt", PYTHONPATH=path)
    assert code == 0, err
    for rank in (0, 1):
        assert json_lines(tmp_path / "rest" / f"rank{rank}.jsonl") == seen[rank][3:]


# --- standard output -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redirected", ["| head -1", "> /dev/full", ">&-"])
def test_a_run_whose_output_nobody_reads_ends_as_any_other(words_file: Path, tmp_path: Path, redirected: str) -> None:
    command = shlex.join(
        [
            sys.executable, str(ROOT / "scripts" / "train.py"), f"data.path={words_file}", "trainer=cpu",
            "trainer.max_steps=5", "callbacks=none", "logger=none", "hydra.run.dir=run",
        ]
    )  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {redirected}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 5
    assert (tmp_path / "run" / "report.html").exists()
