"""What is printed for a person. A reader who has left, as `head` does, ends no run."""

import os
import sys

from rich.console import Console
from rich.table import Table


def show(*parts: str | Table) -> None:
    """Print tables, and lines as they are, on standard output, as far as someone reads it."""
    try:
        console = Console()
        for part in parts:
            console.print(part, markup=False, highlight=False, soft_wrap=True)
        sys.stdout.flush()
    except BrokenPipeError:
        close()


def close() -> None:
    """Leave nothing to write to standard output at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
