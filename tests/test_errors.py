"""A user's mistake is shown as a sentence, a fault of the program as a traceback."""

import errno
import os
import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import torch
from conftest import ROOT, Compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch import Callback, LightningModule, Trainer

from makemore_pl.config import resolve
from makemore_pl.config.choices import refuse_several
from makemore_pl.errors import explain, is_mistake, quiet_threads
from makemore_pl.train import run

AVAILABLE = ", ".join(sorted(path.stem for path in (ROOT / "conf" / "optim").iterdir()))
EARLY = "lightning.pytorch.callbacks.EarlyStopping"


class Broken(Callback):
    """A callback with a fault in it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise RuntimeError("a fault")


def caught(work: Callable[[], object]) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (f"+callbacks.x={{_target_:{EARLY},monitor:val/losss}}", "metric `val/losss` which is not available"),
        (
            f"+callbacks.x={{_target_:{EARLY},monitor:val/loss,patiense:3}}",
            f"callbacks.x: {EARLY} can't be made. TypeError: EarlyStopping.__init__() got an unexpected keyword "
            "argument 'patiense'",
        ),
        (
            "+callbacks.x={_target_:lightning.pytorch.callbacks.ModelCheckpoint,monitor:val/losss}",
            "`ModelCheckpoint(monitor='val/losss')` could not find the monitored key",
        ),
        (
            "+callbacks.x={_target_:nowhere.Nothing}",
            "callbacks.x: nowhere.Nothing can't be made. ModuleNotFoundError: No",
        ),
        ("+callbacks.x={_target_:builtins.dict}", "callbacks.x: builtins.dict does not fit Lightning"),
        (
            "+logger.x={_target_:lightning.pytorch.loggers.CSVLogger}",
            "logger.x: lightning.pytorch.loggers.CSVLogger can't",
        ),
        (
            "+logger.x={_target_:lightning.pytorch.loggers.CometLogger}",
            "logger.x: lightning.pytorch.loggers.CometLogger can't",
        ),
        ("+logger.x={_target_:builtins.dict}", "logger.x: builtins.dict does not fit Lightning"),
    ],
)
def test_a_setting_that_lightning_refuses(small: Compose, override: str, said: str) -> None:
    error = caught(lambda: run(small(override), announce=False))
    assert is_mistake(error)
    assert said in explain(error)
    assert "\n" not in explain(error)


def test_more_devices_than_there_are(small: Compose) -> None:
    error = caught(lambda: Trainer(accelerator="gpu", devices=torch.cuda.device_count() + 1))
    assert is_mistake(error)
    assert "\n" not in explain(error)


@pytest.mark.parametrize(
    "work",
    [
        lambda: {}["x"],
        lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),
        lambda: torch.nn.Linear(2, 3)(torch.zeros(3)),
        lambda: Trainer(accelerator="cpu", logger=False).fit(1),  # type: ignore[arg-type]
        lambda: (_ for _ in ()).throw(BrokenPipeError(errno.EPIPE, "Broken pipe")),
    ],
)
def test_a_fault_keeps_its_traceback(work: Callable[[], object]) -> None:
    assert not is_mistake(caught(work))


def test_a_callback_s_fault_keeps_its_traceback(small: Compose) -> None:
    assert not is_mistake(caught(lambda: run(small("+callbacks.x={_target_:test_errors.Broken}"), announce=False)))


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda here: (here / "file" / "x").mkdir(), "file/x can't be used: Not a directory."),
        (lambda here: (here / "file").mkdir(), "file can't be made a directory: something else of this name is there."),
        (lambda here: (here / "loop").read_text(), "loop can't be used: Too many levels of symbolic links."),
        (lambda here: here.read_text(), " can't be used: Is a directory."),
        (lambda here: os.stat(bytes(here / "missing")), "/missing can't be used: No such file or directory."),
        (lambda here: (here / "file").rename(here / "folder"), "folder can't be used: Is a directory."),
        (
            lambda here: Path("/dev/full").write_text("x" * 10**6),
            "No space left on device: make room, or write elsewhere.",
        ),
        (lambda here: (here / ("a" * 5000)).touch(), "…" + "a" * 50 + " can't be used: File name too long."),
    ],
)
def test_what_the_file_system_refuses(tmp_path: Path, use: Callable[[Path], object], said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    error = caught(lambda: use(tmp_path))
    assert is_mistake(error)
    assert explain(error).endswith(said)


def test_memory_that_the_system_does_not_give() -> None:
    error = caught(lambda: torch.empty(2**60, dtype=torch.int8))
    assert is_mistake(error)
    assert explain(error).startswith("There is not enough memory: ")


@pytest.mark.parametrize(
    "override", ["ckpt_path=a/gain=0.5/last.ckpt", "data.path=a b[c", "seed=1,2", "data.path=$(x)"]
)
@pytest.mark.usefixtures("conf")
def test_what_hydra_can_t_read_is_shown_quoted(override: str) -> None:
    sentence = explain(caught(lambda: hydra.compose("train", overrides=[override])))
    quoted = shlex.split(sentence.replace("can't", "can not"))[-1]
    key, _, value = override.partition("=")
    assert quoted == f'{key}="{value}"'
    assert OverridesParser.create().parse_override(quoted).value() == value


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lr=0.1,", "'optim.lr=0.1,' has a comma at an end: type optim.lr=0.1."),
        (
            "callbacks.figures.steps=[0]",
            "callbacks.figures.steps is not among the defaults: add it, +callbacks.figures.st",
        ),
        ("experiment=kaiming", "Type +experiment=kaiming: the defaults have none that it could take the place of."),
        ("trainer.max_steps=1e5", "trainer.max_steps must be a whole number: type it as 100000 without a point or an "),
        (
            "data.batch_size=32.0",
            "data.batch_size must be a whole number: type it as 32 without a point or an exponent",
        ),
        (
            "model.n_layers=2.5",
            "model.n_layers must be a whole number: type it without a point or an exponent, not 2.5",
        ),
        ("seed=1e400", "seed must be a whole number: type it without a point or an exponent, not inf."),
        ("model.gain=5/3", "model.gain must be a number, got '5/3'."),
        ("seed=", "seed must be a whole number: type it without a point or an exponent, not an empty"),
        ("optim=", f"There is no optim=. Available: {AVAILABLE}."),
        ("optim=a/b", f"There is no optim=a/b. Available: {AVAILABLE}."),
        (
            "optim@x=adam",
            "Could not override 'optim@x'. Did you mean to override optim? To append to your default list",
        ),
        ("data=1", "A group takes one of its names, not data=1."),
    ],
)
def test_what_should_have_been_typed(override: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=1", override])
    sentence = explain(caught(lambda: hydra.compose("train", overrides=[override])))
    assert sentence.startswith(said)
    assert "\n" not in sentence


@pytest.mark.parametrize("override", ["optim=[sgd,adam]", "trainer=[]", "+experiment=[kaiming, adam]", "data=[a,b,c]"])
def test_one_choice_of_a_group(override: str) -> None:
    group = override.lstrip("+").partition("=")[0]
    with pytest.raises(ValueError, match=rf"{group} takes one choice, not a list of \d\.$"):
        refuse_several([override])


def test_lists_of_what_adds_up() -> None:
    refuse_several(["optim=[adam]", "callbacks=[diagnostics,none]", "logger=[]", "+callbacks.figures.steps=[0,5]"])


def test_a_thread_ends_in_no_traceback_of_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.excepthook
    try:
        quiet_threads()
        for error in (OSError(errno.ENOSPC, "No space left on device"), KeyError("a fault")):
            thread = threading.Thread(target=lambda error=error: (_ for _ in ()).throw(error).__next__())
            thread.start()
            thread.join()
    finally:
        threading.excepthook = before
    err = capsys.readouterr().err
    assert "No space left" not in err
    assert "KeyError: 'a fault'" in err


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize("override", ["callbacks=[1,2]", f"model.gain={10**400}", "logger=[-1]", "model={a:{b:1}}"])
def test_what_hydra_stumbles_over_is_a_mistake(override: str) -> None:
    error = caught(lambda: resolve(hydra.compose("train", overrides=[override, "run_dir=x"])))
    assert is_mistake(error)
    assert "\n" not in explain(error)
