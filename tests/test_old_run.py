"""A run directory of an earlier version (commit 228d8ad, whose own losses these are) is read by the code of the day."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Compose

from makemore_pl.checkpoint import load_module
from makemore_pl.config.stored_config import load_config
from makemore_pl.evaluate import evaluate
from makemore_pl.report.page import render, tell
from makemore_pl.report.run_directory import read_embedding
from makemore_pl.sample import sample
from makemore_pl.train import run

LOSSES = {"train": 2.2091826894519464, "val": 2.2640559557850355, "test": 2.1401377334174563}
RESUMED = {"train/loss": 2.190909567177104, "val/loss": 2.251836587392768, "test/loss": 2.102837641909205}
"""After 20 more steps of that version."""
SAME = (
    "data.path=words.txt", "model.n_embd=2", "model.n_hidden=4", "model.batchnorm=pre_output", "optim=adam",
    "trainer.max_steps=40", "trainer.val_check_interval=10", "optim.lr=0.1",
)  # fmt: skip


@pytest.fixture
def last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its last.ckpt, in a copy of the directory."""
    shutil.copytree(ROOT / "tests" / "data" / "old_run", tmp_path / "old_run")
    shutil.copy(tmp_path / "old_run" / "words.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path("old_run") / "checkpoints" / "last.ckpt"


def test_evaluated_sampled_and_reported(last: Path) -> None:
    losses = evaluate(last, load_config(last.parents[1]), recalibrated=True)
    assert losses["running statistics"] == pytest.approx(LOSSES, rel=1e-6)
    module = load_module(last)
    assert len(sample(module.model, module.vocabulary, 5, module.block_size)) == 5
    characters, embedding = read_embedding(last.parents[1])
    assert embedding.shape == (len(characters), 2) == (11, 2)
    assert "2.264" in render(tell(last.parents[1]))


def test_resumed(small: Compose, last: Path) -> None:
    metrics = run(small(*SAME, f"ckpt_path={last}", run_dir=last.parents[1]))
    assert {key: metrics[key] for key in RESUMED} == pytest.approx(RESUMED, rel=1e-5)
    assert metrics["steps"] == 40
    assert metrics["steps_per_second"] == pytest.approx(20 / metrics["seconds"], rel=0.1), (
        "of steps whose time is known"
    )


def test_a_setting_that_is_newer_than_the_checkpoint_has_its_default(small: Compose, last: Path) -> None:
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["hyper_parameters"]["model"]["dropout"]
    del checkpoint["hyper_parameters"]["optim"]["weight_decay"]
    torch.save(checkpoint, last)
    assert run(small(*SAME, f"ckpt_path={last}", run_dir=last.parents[1]))["steps"] == 40
    last.parents[1].joinpath("metrics.json").unlink()
    with pytest.raises(ValueError, match=r"model\.dropout=0\.0 \(here 0\.5\)"):
        run(small(*SAME, f"ckpt_path={last}", "model.dropout=0.5"))


def test_the_best_so_far_stays_the_best_though_the_directory_was_moved(small: Compose, last: Path) -> None:
    best = last.with_name("best.ckpt")
    shutil.copy(last, best)
    diverging = [each for each in SAME if not each.startswith("optim.lr")]
    metrics = run(small(*diverging, "optim.lr=50", f"ckpt_path={last}", run_dir=last.parents[1]))
    assert metrics["val/loss"] > LOSSES["val"] + 1
    assert torch.load(best, weights_only=True)["global_step"] == 20
