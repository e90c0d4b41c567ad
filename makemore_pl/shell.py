"""Paths and programs as one types them into a shell in this directory."""

import os
import shlex
import sys
from pathlib import Path


def short(path: Path) -> str:
    """Relative where it lies below the working directory."""
    absolute = Path(os.path.abspath(path))  # not resolved: the python of an environment is a link
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def quoted(path: Path) -> str:
    """As short, quoted where a shell needs it."""
    return shlex.quote(short(path))


def program(name: str) -> str:
    """A program of this environment, quoted; its path, where the shell would not find the same one."""
    beside = Path(sys.executable).with_name(name)
    found = [Path(folder) / name for folder in os.get_exec_path()]
    first = next((path for path in found if path.is_file()), None)
    return name if first == beside or not beside.exists() else quoted(beside)
