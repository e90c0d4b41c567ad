"""Printed commands work as printed: in a real shell, with Hydra, from any directory."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, WORDS, Compose

from makemore_pl.command_line import command, near, program, tensorboard, typed
from makemore_pl.train import refuse_finished, run

NASTY = (
    "gain=0.5",
    "a b[c]{d}",
    "~",
    "-x",
    'it\'s "so", $HOME',
    "${x} $(touch f)",
    "é 中 😀;#&|",
    "back\\slash\\",
    "[red]",
)


def paste(line: str, cwd: Path) -> str:
    """The output of a command in a POSIX shell whose PATH lacks this environment."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", line], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestPaths:
    def test_below_the_working_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert near(tmp_path / "a" / "b") == "a/b"
        assert near(tmp_path.parent / "x") == str(tmp_path.parent / "x")
        assert near(tmp_path / "-x") == "./-x", "no option of a program"

    def test_programs_of_this_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        (python,) = program("python")
        assert Path(python).samefile(Path(sys.executable).parent / "python")
        (tmp_path / "python").symlink_to(Path(sys.executable).resolve())
        monkeypatch.setenv("PATH", str(tmp_path))
        assert program("python") == [python], "the same binary, but without what is installed here"
        monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
        assert program("python") == ["python"]

    def test_an_environment_without_the_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "python3").symlink_to(Path(sys.executable).resolve())
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
        monkeypatch.setenv("PATH", "/nowhere")
        python = str(tmp_path / "python3")
        assert shlex.split(tensorboard(tmp_path)) == [python, "-m", "tensorboard.main", "--logdir", near(tmp_path)]


def test_a_path_of_any_name_reaches_hydra_through_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "in $HOME [b]"
    here.mkdir()
    monkeypatch.chdir(here)
    whole = "/".join(NASTY)
    finished = here / whole
    finished.mkdir(parents=True)
    (finished / "metrics.json").touch()
    with pytest.raises(ValueError, match="already holds a finished run") as caught:
        refuse_finished(finished, resuming=False)
    resume = str(caught.value).partition("resume it with ")[2]
    shown = paste(f"{command('train.py', '--cfg', 'job', f'data.path={typed(whole)}')} {resume}", cwd=here)
    program = (
        "import sys; from omegaconf import OmegaConf; config = OmegaConf.create(sys.stdin.read()); "
        "print(config.data.path, config.ckpt_path, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", program], input=shown, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [whole, f"{whole}/checkpoints/last.ckpt"]


def test_what_a_run_prints_at_its_end_can_be_pasted(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "in $HOME [b]"
    here.mkdir()
    monkeypatch.chdir(here)
    run_dir = here / "-x [red] run[" / "it's é" / "~"
    run(small("logger=tensorboard", "report=false", run_dir=run_dir))
    lines = dict(re.findall(r"^(\S+ \S+|\S+) {2,}(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert shlex.split(lines["written to"]) == [near(run_dir)]
    assert shlex.split(lines["TensorBoard"].partition("  (")[0])[-1] == near(run_dir)
    names = paste(lines["try next"], cwd=here).splitlines()
    assert len(names) == 20
    assert {*"".join(names)} <= {*"".join(WORDS)}
