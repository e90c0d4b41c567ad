"""Paths and programs as a person pastes them into a shell."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def near(path: Path) -> str:
    """A path: relative where it lies below the working directory, quoted where needed."""
    whole = Path(os.path.abspath(path))  # not resolved: the python of an environment is a link to another
    return shlex.quote(str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole))


def program(name: str) -> str:
    """A program of this Python's environment: its name alone where the shell finds that very one."""
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if not own.exists() or (found and Path(found).absolute() == own) else near(own)
