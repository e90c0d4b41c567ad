"""Whole-split losses and BatchNorm's calibration, as functions and as a command."""

import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Compose, python
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from makemore_pl.checkpoint import load_module
from makemore_pl.config import ModelConfig
from makemore_pl.data import NamesDataModule
from makemore_pl.evaluate import recalibrate
from makemore_pl.losses import CONTEXTS_AT_ONCE, distinct, split_loss
from makemore_pl.model import MLP
from makemore_pl.train import run


def examples(count: int, vocab_size: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(vocab_size, (count, 3), generator=generator)
    return x, torch.randint(vocab_size, (count,), generator=generator)


def mlp(**config: object) -> MLP:
    """Not trained, but with running statistics and BatchNorm weights that are not those of the start."""
    generator = torch.Generator().manual_seed(1)
    model = MLP(11, 3, ModelConfig(n_embd=4, n_hidden=6, output_scale=1.0, **config), generator)  # type: ignore[arg-type]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)  # type: ignore[union-attr]
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("count", [1, 50, CONTEXTS_AT_ONCE, CONTEXTS_AT_ONCE + 1])
@pytest.mark.parametrize("batchnorm", ["none", "pre_output"])
def test_split_loss_equals_a_naive_loop(batchnorm: str, count: int) -> None:
    model = mlp(batchnorm=batchnorm, dropout=0.5)
    x, y = examples(count)
    model.double().eval()
    with torch.no_grad():
        expected = sum(
            -model(x[i : i + 64]).log_softmax(1)[torch.arange(len(y[i : i + 64])), y[i : i + 64]].sum().item()
            for i in range(0, count, 64)
        )
    model.float().train()
    assert split_loss(model, x, y) == pytest.approx(expected / count, rel=1e-6)  # float32 logits


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=50))
@settings(deadline=None, max_examples=50)
def test_distinct_contexts(rows: list[list[int]]) -> None:
    x = torch.tensor(rows)
    contexts, which = distinct(x)
    assert torch.equal(contexts[which], x)
    assert len(contexts) == len(set(map(tuple, rows)))


def test_distinct_contexts_that_fit_no_number() -> None:
    x = torch.randint(1000, (50, 20)).repeat(2, 1)
    contexts, which = distinct(x)
    assert torch.equal(contexts[which], x)
    assert len(contexts) == 50


def test_split_loss_leaves_no_trace() -> None:
    model = mlp(batchnorm="pre", dropout=0.5)
    model.train()
    before = state(model)
    loss = split_loss(model, *examples(100))
    assert isinstance(loss, float)
    assert model.training
    assert model.layers[0].batchnorm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert split_loss(model.eval(), *examples(100)) == loss
    assert not model.training


def test_recalibrated_statistics_are_those_of_the_whole_split() -> None:
    model = mlp(batchnorm="pre", dropout=0.5)
    x, _ = examples(1_000)
    before = state(model)
    recalibrate(model, x)
    with torch.no_grad():
        preactivation = model.layers[0].linear(model.embedding(x).flatten(1)).double()
    batchnorm = model.layers[0].batchnorm
    mean, var = preactivation.mean(0), preactivation.var(0, correction=1)  # nn.BatchNorm1d keeps the unbiased variance
    # float32 sums of 1,000 numbers near 1; the biased variance would differ by 1e-3
    torch.testing.assert_close(batchnorm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(batchnorm.running_var.double(), var, rtol=1e-5, atol=1e-5)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"layers.0.batchnorm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert batchnorm.momentum == 0.1
    assert model.training
    assert batchnorm.training


@pytest.mark.parametrize("batchnorm", ["post", "output", "pre_output"])
def test_recalibrating_makes_eval_mode_the_whole_split_as_one_batch(batchnorm: str) -> None:
    """Also in a deep network, where a layer's statistics depend on those before it."""
    model = mlp(batchnorm=batchnorm, n_layers=3).double()
    x, _ = examples(1_000)
    recalibrate(model, x)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                # running statistics have the unbiased variance, a batch is normalized by the biased one
                module.running_var *= (len(x) - 1) / len(x)  # type: ignore[operator]
        evaluated = model.eval()(x)
        as_one_batch = model.train()(x)
    torch.testing.assert_close(evaluated, as_one_batch, rtol=1e-10, atol=1e-10)  # float64, three layers


def test_recalibrating_twice_changes_nothing_more() -> None:
    model = mlp(batchnorm="pre_output", n_layers=2)
    x, _ = examples(200)
    recalibrate(model, x)
    once = state(model)
    recalibrate(model, x)
    assert all(torch.equal(once[name], tensor) for name, tensor in model.state_dict().items() if "running" in name)


def test_nothing_to_recalibrate() -> None:
    with pytest.raises(ValueError, match=r"^There is nothing to recalibrate: the model has no BatchNorm\.$"):
        recalibrate(mlp(), examples(10)[0])


def test_recalibrating_mends_a_short_memory(small: Compose, tmp_path: Path) -> None:
    """The reason for the lecture's calibration: with momentum 1 the statistics are those of the last 8 examples."""
    config = small("model.batchnorm=pre", "model.bn_momentum=1", "trainer.max_steps=200")
    metrics = run(config)
    module = load_module(tmp_path / "run" / "checkpoints" / "last.ckpt")
    datamodule = NamesDataModule(config.data, config.trainer, torch.Generator())
    x, y = datamodule.examples["train"]
    recalibrate(module.model, x)
    assert split_loss(module.model, x, y) < metrics["train/loss"] - 0.01


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(small: Compose, tmp_path: Path) -> Path:
    """A finished run whose best checkpoint is not the last one."""
    finished, forty = tmp_path / "finished", tmp_path / "forty.ckpt"
    network = ("model.batchnorm=pre", "model.bn_momentum=0.9", "optim.schedule=constant")
    run(small(*network, "trainer.max_steps=40", run_dir=finished))
    shutil.copy(finished / "checkpoints" / "last.ckpt", forty)
    run(small(*network, f"ckpt_path={forty}", "trainer.max_steps=80", run_dir=finished))
    shutil.copy(forty, finished / "checkpoints" / "best.ckpt")
    return finished


def losses(run_dir: Path, checkpoint: str, small: Compose, recalibrated: bool) -> list[str]:
    """Train, val and test loss as the table shows them."""
    module = load_module(run_dir / "checkpoints" / f"{checkpoint}.ckpt")
    config = small()
    datamodule = NamesDataModule(config.data, config.trainer, torch.Generator())
    if recalibrated:
        recalibrate(module.model, datamodule.examples["train"][0])
    with torch.no_grad():
        return [f"{cross_entropy(module(x), y).item():.4f}" for x, y in datamodule.examples.values()]


def rows(out: str) -> list[list[str]]:
    """The numbers of each line of a table that has at least three."""
    found = [re.findall(r"\d+\.\d{4}\b", line) for line in out.splitlines()]
    return [row for row in found if len(row) >= 3]


EvaluateHere = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> EvaluateHere:
    """scripts/evaluate.py in this process, which has torch already: exit code, stdout, stderr."""

    def run_script(*arguments: str | Path) -> tuple[int, str, str]:
        script = ROOT / "scripts" / "evaluate.py"
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return code, *capsys.readouterr()

    return run_script


def test_evaluate_as_the_user_runs_it(small: Compose, run_dir: Path, tmp_path: Path) -> None:
    done = python(ROOT / "scripts" / "evaluate.py", run_dir, "--checkpoint", "last", "--recalibrate", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    running, recalibrated = losses(run_dir, "last", small, False), losses(run_dir, "last", small, True)
    assert running != recalibrated
    assert rows(done.out) == [running, recalibrated]


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_evaluate_a_checkpoint(small: Compose, run_dir: Path, evaluate_here: EvaluateHere, checkpoint: str) -> None:
    code, out, _ = evaluate_here(run_dir, "--checkpoint", checkpoint)
    assert code == 0
    assert rows(out) == [losses(run_dir, checkpoint, small, False)]
    assert losses(run_dir, "best", small, False) != losses(run_dir, "last", small, False)


def test_evaluating_changes_no_file(run_dir: Path, evaluate_here: EvaluateHere) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert evaluate_here(run_dir, "--recalibrate")[0] == 0
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_evaluate_refuses_in_one_sentence(small: Compose, tmp_path: Path, evaluate_here: EvaluateHere) -> None:
    nowhere = tmp_path / "nowhere"
    assert evaluate_here(nowhere) == (1, "", f"error: {nowhere} is not a run directory: it has no config.yaml.\n")
    run(small())
    run_dir = tmp_path / "run"
    code, out, err = evaluate_here(run_dir, "--recalibrate")
    assert (code, out) == (1, "")
    assert err == "error: There is nothing to recalibrate: the model has no BatchNorm.\n"
    last = run_dir / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    code, out, err = evaluate_here(run_dir)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {last} is not a checkpoint, or is truncated or damaged (")
    last.unlink()
    assert evaluate_here(run_dir) == (1, "", f"error: There is no checkpoint {last}.\n")
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("  path:", "  pth:"))
    code, out, err = evaluate_here(run_dir)
    assert (code, out) == (1, "")
    assert err == f"error: {config} can't be read: Unknown config key 'data.pth'. Did you mean 'data.path'?\n"


def test_evaluate_refuses_other_words(small: Compose, tmp_path: Path, evaluate_here: EvaluateHere) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"ab{'c' * i}" for i in range(30)))
    run(small(f"data.path={words}"))
    words.write_text("\n".join(f"abd{'c' * i}" for i in range(30)))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert evaluate_here(tmp_path / "run") == (
        1,
        "",
        f"error: {last} has another vocabulary, 'abc', than these words, 'abcd'.\n",
    )
