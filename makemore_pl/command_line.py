"""Writes commands that can be pasted: values in Hydra's grammar of overrides, programs and arguments for a shell."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "scripts"
WORD = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_/][\w./-]*", re.ASCII | re.IGNORECASE)
"""A text that Hydra reads unchanged without quotes."""
MODULES = {"tensorboard": "tensorboard.main"}
"""Program -> the module that `python -m` runs where the program itself is not on the PATH."""


def typed(value: Any) -> str:
    """A value in Hydra's grammar of overrides. Numbers keep every digit; `${...}` in a text is not interpolated."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(typed, value)) + "]"
    if not isinstance(value, str) or WORD.fullmatch(value):
        return str(value)
    quotable = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), literal(value))
    return f'"{quotable}"'


def literal(text: str) -> str:
    """The text with every interpolation `${...}` escaped, so that OmegaConf leaves it as it is."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def near(path: Path) -> str:
    """A path for a command, not yet quoted: relative if it lies below the working directory, else absolute."""
    whole = Path(os.path.abspath(path))  # links are kept: the python of a virtual environment is one
    if not whole.is_relative_to(Path.cwd()):
        return str(whole)
    relative = str(whole.relative_to(Path.cwd()))
    return f"./{relative}" if relative.startswith("-") else relative


def program(name: str) -> list[str]:
    """How to call a program of this Python's environment: by name if the shell finds the same one, else by path."""
    beside = Path(sys.executable).parent
    own = Path(sys.executable) if name == "python" and not (beside / name).exists() else beside / name
    found = shutil.which(name)
    if own.exists():
        # compare the directories: the files would be equal, for the python of an environment links to the system's
        same = found and Path(found).name == own.name and Path(found).parent.resolve() == own.parent.resolve()
        return [name if same else near(own)]
    return [name] if found else [*program("python"), "-m", MODULES[name]]


def command(script: str, *arguments: str) -> str:
    """The shell command that runs a script of this project with these arguments from the working directory."""
    return shlex.join([*program("python"), near(SCRIPTS / script), *arguments])


def anywhere(script: str, *arguments: str) -> str:
    """The same for any working directory. Paths among the arguments must be absolute."""
    return shlex.join([sys.executable, os.path.abspath(SCRIPTS / script), *arguments])


def tensorboard(directory: Path) -> str:
    """The shell command that shows a directory in TensorBoard, to be run from the working directory."""
    return shlex.join([*program("tensorboard"), "--logdir", near(directory)])
