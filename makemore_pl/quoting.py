"""Commands as they have to be typed: quoted for Hydra's grammar, then for the shell."""

import re
import shlex
import shutil
import sys
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

PLAIN = re.compile(r"[\w./@:+-]+", re.ASCII)
"""What Hydra reads unquoted as the text that it is."""


def override(key: str, value: str | Path) -> str:
    """`key=value` for a command line: Hydra reads the value as this text, whatever characters it has."""
    text = str(value)
    if not PLAIN.fullmatch(text):
        text = QuotedString(text.replace("${", r"\${"), Quote.single).with_quotes()
    return shlex.quote(f"{key}={text}")


def command(script: str, *arguments: str | Path, overrides: dict[str, str | Path] | None = None) -> str:
    """A command for one of scripts/, with this Python and this path to scripts/ as they were typed."""
    words = [shlex.quote(str(argument)) for argument in arguments]
    words += [override(key, value) for key, value in (overrides or {}).items()]
    return " ".join([interpreter(), shlex.quote(str(_scripts() / script)), *words])


def interpreter() -> str:
    """Python as it was typed, where that still finds it."""
    typed = sys.orig_argv[0] if sys.orig_argv else ""
    return shlex.quote(typed if shutil.which(typed) else sys.executable)


def _scripts() -> Path:
    typed = Path(sys.argv[0])
    return typed.parent if (typed.parent / "report.py").is_file() else Path(__file__).parents[1] / "scripts"
