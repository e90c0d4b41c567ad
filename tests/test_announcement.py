"""What a run says in the terminal. Run alone: pytest tests/test_announcement.py"""

import logging
import math
import os
import pty
import shlex
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import ROOT, Compose

from makemore_pl.doctor.finding import Diagnosis, Finding, Prescription
from makemore_pl.running.announcement import NEXT, say_breakdown, say_end
from makemore_pl.running.output import wrapped
from makemore_pl.running.progress import line
from makemore_pl.train import run

METRICS = {
    "stopped_by": None,
    "experiment": "a[bold]b", "train/loss": 2.0, "val/loss": 2.1, "test/loss": 2.2, "val/perplexity": None,
    "initial_loss": 3.3, "uniform_loss": 3.2958, "steps": 20, "seconds": 1.0,
}  # fmt: skip


class TestLine:
    WHOLE = "step 12,000/200,000  train 2.12  val 2.13  15,400 steps/s  0:13 left"

    def test_whole(self) -> None:
        assert line(80, 12_000, 200_000, 2.123, 2.134, 15_400) == self.WHOLE

    @pytest.mark.parametrize("width", range(1, 81))
    def test_the_least_important_goes_first(self, width: int) -> None:
        shown = line(width, 12_000, 200_000, 2.123, 2.134, 15_400)
        parts = self.WHOLE.split("  ")
        beginnings = ["  ".join(parts[:n]) for n in range(1, len(parts) + 1)]
        fitting = [beginning for beginning in beginnings if len(beginning) <= width]
        assert shown == (fitting[-1] if fitting else self.WHOLE[:width])

    def test_what_is_not_known_is_left_out(self) -> None:
        assert line(80, 5, 20, math.nan, math.nan, None) == "step 5/20"
        assert line(80, 20, 20, 2.0, math.nan, 10.0) == "step 20/20  train 2.00  10 steps/s"
        assert line(80, 0, 7200, 2.0, math.nan, 1.0).endswith("2:00:00 left")

    def test_while_compiling_there_is_no_time_left(self) -> None:
        assert line(80, 50, 20_000, 3.2, math.nan, 12.0, "compiling") == "step 50/20,000  compiling  train 3.20"


@pytest.mark.parametrize("columns", [30, 80])
def test_bar_in_a_terminal(columns: int) -> None:
    """In a pseudoterminal the bar is one line with both losses, never wider than the terminal, below log lines."""
    program = (
        "import sys, logging, math, hydra; from types import SimpleNamespace as N; import torch;"
        "logging.basicConfig(level='INFO', stream=sys.stdout, format='%(message)s');"
        "from makemore_pl.running.progress import StepProgressBar;"
        "from makemore_pl.config import ModelConfig, OptimConfig; from makemore_pl.module import MakemoreModule;"
        "bar, module = StepProgressBar(), MakemoreModule('abc', 3, ModelConfig(), OptimConfig());"
        "module.mean_loss = 2.5;"
        "trainer = N(max_steps=200000, global_step=0, callback_metrics={});"
        "bar.on_train_start(trainer, module); trainer.global_step = 50; bar.on_train_batch_end(trainer, module);"
        "log = logging.getLogger('makemore_pl.stride.compiling'); log.info('Compiling the steps.');"
        "log.info('Compiled.'); trainer.callback_metrics['val/loss'] = torch.tensor(2.25);"
        "bar.on_validation_end(trainer, module); bar.on_train_end(trainer, module)"
    )
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=slave, stderr=slave)
    os.close(slave)
    printed = b""
    while True:
        try:
            more = os.read(master, 65536)
        except OSError:
            break
        if not more:
            break
        printed += more
    assert process.wait(60) == 0, printed
    written = [each for part in printed.decode().splitlines() for each in part.split("\r")]
    assert max(map(len, written)) <= columns
    assert "Compiling the steps." in written
    assert "Compiled." in written
    assert any("compiling" in each for each in written), written
    last = [each for each in written if each.startswith("step")][-1]
    assert last.startswith("step 50/200,000  train 2.50")
    assert ("val 2.25" in last) == (columns >= 80)


def test_lines_at_the_end(small: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "[red] a b"
    run_dir.mkdir()
    say_end(small("report=false", run_dir=run_dir), METRICS, [])
    said = capsys.readouterr().out
    assert "a[bold]b: losses in nats" in said
    *_, page, following = said.splitlines()
    script, directory = shlex.split(page)[-2:]
    assert (Path(script).resolve(), directory) == (ROOT / "scripts" / "report.py", str(run_dir))
    assert shlex.split(following)[-1] == str(run_dir), "names of this run, where the lecture has nothing to go on with"
    assert list(run_dir.iterdir()) == []


def test_a_page_that_fails_is_told_in_one_line(
    small: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text("- not a config")
    with caplog.at_level(logging.WARNING):
        say_end(small(run_dir=tmp_path), METRICS, [])
    assert "The page could not be made (ValueError: " in caplog.text
    assert "report.py" in capsys.readouterr().out


DOCTOR = ("callbacks={doctor: {_target_: makemore_pl.diagnostics.Doctor}}", "report=false")


def test_the_verdict_stands_under_the_losses(small: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    run(small(*DOCTOR, "model.output_scale=3"))
    above, _, below = capsys.readouterr().out.partition("20 steps in")
    assert "confident_start" not in above
    _, first, second, *_ = below.splitlines()
    assert first.startswith("doctor       1. The network begins confidently wrong (confident_start, critical). ")
    assert second.startswith(" " * 13 + "   Change model.output_scale=")


def test_of_a_healthy_run_the_doctor_says_one_line(
    small: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = Diagnosis((Finding("frozen_parameters", "info", "x", 0, None, None, "", "On purpose."),), (), ("a", "b"))
    say_end(small("report=false", run_dir=tmp_path), METRICS, [], checked)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == "doctor       healthy: 2 checks found nothing wrong"


@pytest.mark.parametrize("callbacks", [DOCTOR, ("callbacks=diagnostics",)])
def test_a_run_that_breaks_off_has_its_verdict_too(
    small: Compose, callbacks: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FloatingPointError):
        run(small(*callbacks, "model.activation=relu", "optim.lr=1e30"))
    assert capsys.readouterr().out.count("Because of update_too_large: not_finite.") == 1


@pytest.mark.parametrize("columns", [40, 80])
def test_sentences_are_wrapped_at_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "   Change model.output_scale=0.02 model.output_bias=0: logits of this standard-deviation cost 0.02 nats."
    assert wrapped(words) == [words], "a file has them whole"
    monkeypatch.setattr(sys, "stdout", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = wrapped(words, 13)
    assert " ".join(" ".join(lines).split()) == " ".join(words.split())
    assert max(map(len, lines)) <= max(columns - 13, len("   model.output_scale=0.02"))
    assert all(line.startswith("   ") and line[3] != " " for line in lines)
    (first, second, *_) = wrapped("1. " + "word " * 60)
    assert first.startswith("1. word")
    assert second.startswith("   word")


def prescribed(tmp_path: Path) -> Diagnosis:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("[+experiment=kaiming, optim.lr=20, hydra.run.dir=x, seed=3]")
    finding = Finding("update_too_large", "critical", "x", 0, None, None, "", "They are.")
    remedies = (
        Prescription("update_too_large", ("optim.lr=0.1",), "x"),
        Prescription("dead_units", ("optim.lr=1",), "y"),
    )
    return Diagnosis((finding,), (), ("update_too_large",), remedies)


def test_what_the_doctor_prescribes_is_to_be_tried_next(
    small: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, diagnosis = small("report=false", "+experiment=kaiming", run_dir=tmp_path), prescribed(tmp_path)
    say_end(config, METRICS, [], diagnosis)
    tried = ["+experiment=kaiming", "seed=3", "optim.lr=0.1"]
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-3:] == tried
    say_breakdown(config, diagnosis)
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-3:] == tried
    say_end(config, METRICS, [], Diagnosis((), (), ("update_too_large",)))
    assert capsys.readouterr().out.splitlines()[-1].endswith("train.py +experiment=batchnorm"), "the lecture goes on"


def test_large_losses_do_not_widen_the_table(
    small: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverged = METRICS | {"train/loss": 1758.8446, "val/loss": 3e17, "val/perplexity": 30385243912657.74}
    say_end(small("report=false", run_dir=tmp_path), diverged, [])
    assert "│  1759 │ 3e+17 │ 2.2000 │      3.039e+13 │" in capsys.readouterr().out
    assert line(80, 5, 20, 93407.65, 3e17, None) == "step 5/20  train 9.341e+04  val 3e+17"


def test_a_divergence_is_told_once(
    small: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run(small("callbacks=diagnostics", "report=false", "optim.lr=1000"))
    assert "(update_too_large, critical)" in capsys.readouterr().out
    assert "has diverged" not in caplog.text
    run(small("callbacks=none", "optim.lr=1000", "report=false", run_dir=tmp_path / "other"))
    assert "has diverged" in caplog.text, "where no doctor was"


def test_what_comes_next_can_be_typed() -> None:
    experiments = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    assert {*NEXT, *NEXT.values()} <= experiments
