"""What is printed to be pasted."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from makemore_pl.shell import near, program


@pytest.mark.parametrize("name", ["plain", "two words", "a'b", "[x]", "~", "$HOME", "é中", "a\\b"])
def test_paths_are_near_and_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert shlex.split(near(tmp_path / name)) == [name]
    assert shlex.split(near(Path(name))) == [name]
    assert shlex.split(near(tmp_path.parent / name)) == [str(tmp_path.parent / name)]


def test_a_program_is_the_one_of_this_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in ("base", "venv"):
        (tmp_path / environment).mkdir()
    (tmp_path / "base" / "python").write_text("#!/bin/sh\n")
    (tmp_path / "base" / "python").chmod(0o755)
    (tmp_path / "venv" / "python").symlink_to(tmp_path / "base" / "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "base"))
    assert program("python") == "venv/python", "a link to the same file has other packages"
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "venv"), str(tmp_path / "base")]))
    assert program("python") == "python"
    assert program("elsewhere") == "elsewhere"
