"""Which device a run takes. The GPU is pretended here; tests/test_gpu.py needs a real one."""

import logging
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, Compose, python
from torch import nn

from makemore_pl import losses
from makemore_pl.config import TrainerConfig
from makemore_pl.losses import split_loss
from makemore_pl.running.accelerator import choose_accelerator, device_of
from makemore_pl.sweep.gpu import take_gpu
from makemore_pl.train import run


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends a machine with one GPU, and fails if CUDA is initialized."""

    def begin() -> None:
        raise AssertionError("CUDA is initialized")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for each in (torch.cuda, torch.cuda.random):
        monkeypatch.setattr(each, "device_count", lambda: 1)
        monkeypatch.setattr(each, "_lazy_init", begin)


@pytest.mark.usefixtures("pretended")
def test_a_run_on_the_cpu_does_not_initialize_cuda(small: Compose, tmp_path: Path) -> None:
    run(small("trainer.max_steps=10", "model.dropout=0.1"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert run(small("trainer.max_steps=20", "model.dropout=0.1", f"ckpt_path={last}"))["steps"] == 20
    with pytest.raises(AssertionError, match="CUDA is initialized"):
        torch.cuda.get_rng_state_all()


def test_tensors_are_where_they_are_needed_and_seldom_fetched() -> None:
    """Two tests of a GPU, on one that raises where devices are mixed.

    All of them: MAKEMORE_TEST_DEVICE=pretended make test-gpu.
    """
    tests = "(wait_once and batchnorm_momentum) or first_diagnostics"
    command = ("-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", "-W", "default", "tests/test_gpu.py", "-k", tests)
    done = python(*command, cwd=ROOT, MAKEMORE_TEST_DEVICE="pretended")
    assert done.code == 0, done.out
    assert "2 passed" in done.out


@pytest.mark.usefixtures("pretended")
def test_a_later_run_of_the_process_can_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back after the test
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    choose_accelerator(TrainerConfig(accelerator="cpu"), parameters=10**9, batch_size=32)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    choose_accelerator(TrainerConfig(accelerator="gpu"), parameters=10**9, batch_size=32)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_run_on_the_cpu_does_not_ask_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "is_available")
    assert choose_accelerator(TrainerConfig(accelerator="cpu"), parameters=10**9, batch_size=32) == "cpu"


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(("precision", "said"), [("highest", True), ("high", False), ("medium", False)])
def test_what_the_matrix_products_could_gain_is_said(
    caplog: pytest.LogCaptureFixture, precision: str, said: bool
) -> None:
    with caplog.at_level(logging.INFO, logger="makemore_pl"):
        choose_accelerator(TrainerConfig(accelerator="gpu", matmul_precision=precision), parameters=1, batch_size=1)
    assert ("trainer.matmul_precision=high is faster" in caplog.text) == said


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    ("asked", "trained", "width", "device"),
    [
        ("cpu", "gpu", 10, "cpu"), ("gpu", "cpu", 10, "cuda"), ("auto", "cpu", 3000, "cpu"),
        ("auto", "gpu", 10, "cuda"), ("auto", "auto", 10, "cpu"), ("auto", "auto", 3000, "cuda"),
    ],
)  # fmt: skip
def test_a_trained_network_is_used_where_it_was_trained(
    compose: Compose, asked: str, trained: str, width: int, device: str
) -> None:
    model = nn.Linear(width, width, device="meta")
    assert device_of(asked, compose(f"trainer.accelerator={trained}"), model).type == device


def test_without_a_gpu_auto_is_the_cpu(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, model = compose("trainer.accelerator=gpu"), nn.Linear(1, 1)
    assert device_of("auto", config, model).type == "cpu"
    with pytest.raises(ValueError, match=r"^--accelerator gpu: torch finds no GPU here\.$"):
        device_of("gpu", config, model)


def test_the_loss_of_a_split_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(27, (5000, 2), generator=generator)
    y = torch.randint(27, (5000,), generator=generator)
    model = nn.Sequential(nn.Embedding(27, 4), nn.Flatten(), nn.Linear(8, 27)).requires_grad_(False)
    expected = nn.functional.cross_entropy(model(x).double(), y).item()
    for chunk in (1, 7, 100, 728, 729, 730, 10_000):
        monkeypatch.setattr(losses, "CONTEXTS_AT_ONCE", chunk)
        assert split_loss(model, x, y) == pytest.approx(expected, abs=1e-7)


def test_dropout_that_goes_on_elsewhere_is_said(
    small: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(small("model.dropout=0.1", "trainer.max_steps=10"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    resume = "model.dropout=0.1", f"ckpt_path={last}"
    saved = torch.load(last, weights_only=True)
    assert saved["makemore_pl"]["dropout_generator_cuda"] is None
    saved["makemore_pl"]["dropout_generator_cuda"] = torch.get_rng_state()
    torch.save(saved, last)
    with caplog.at_level(logging.WARNING, logger="makemore_pl"):
        run(small(*resume))
    assert "The run was on the GPU before: dropout's masks now come from another generator." in caplog.messages


@pytest.mark.parametrize(
    ("name", "gpu"), [("LokyProcess-1", "a"), ("LokyProcess-2", "b"), ("LokyProcess-3", "a"), ("LokyProcess-1:2", "b")]
)
def test_the_gpu_of_a_worker(monkeypatch: pytest.MonkeyPatch, name: str, gpu: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: True)
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(name=name))
    take_gpu.__wrapped__()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu
