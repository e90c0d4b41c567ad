"""Commands as one types them: a value in Hydra's grammar of overrides, a program and its arguments in the shell's."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "scripts"
WORD = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_/][\w./-]*", re.ASCII | re.IGNORECASE)
"""What Hydra reads as these very characters without quotes."""
MODULES = {"tensorboard": "tensorboard.main"}
"""What `python -m` runs where a program is not installed as one."""


def typed(value: Any) -> str:
    """A value in Hydra's grammar of overrides: every digit of a number kept, nothing of a text interpolated."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{typed(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(typed, value)) + "]"
    if not isinstance(value, str) or WORD.fullmatch(value):
        return str(value)
    quotable = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), literal(value))
    return f'"{quotable}"'


def literal(text: str) -> str:
    """With every interpolation escaped in OmegaConf's way."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def near(path: Path) -> str:
    """A path as a command's argument: relative where it lies below the working directory. Not yet quoted."""
    whole = Path(os.path.abspath(path))  # not resolved: the python of an environment is a link
    if not whole.is_relative_to(Path.cwd()):
        return str(whole)
    relative = str(whole.relative_to(Path.cwd()))
    return f"./{relative}" if relative.startswith("-") else relative


def program(name: str) -> list[str]:
    """A program of this Python's environment: its name alone where the shell finds the same one."""
    beside = Path(sys.executable).parent
    own = Path(sys.executable) if name == "python" and not (beside / name).exists() else beside / name
    found = shutil.which(name)
    if own.exists():
        # the directories are compared, not the files: the python of an environment is a link to the system's
        same = found and Path(found).name == own.name and Path(found).parent.resolve() == own.parent.resolve()
        return [name if same else near(own)]
    return [name] if found else [*program("python"), "-m", MODULES[name]]


def command(script: str, *arguments: str) -> str:
    """What runs a script of this project with these arguments, to be pasted into a shell in the working directory."""
    return shlex.join([*program("python"), near(SCRIPTS / script), *arguments])


def anywhere(script: str, *arguments: str) -> str:
    """The same, to be pasted in whatever directory; paths among the arguments must be whole."""
    return shlex.join([sys.executable, os.path.abspath(SCRIPTS / script), *arguments])


def tensorboard(directory: Path) -> str:
    """What shows a directory in TensorBoard, to be pasted into a shell in the working directory."""
    return shlex.join([*program("tensorboard"), "--logdir", near(directory)])
