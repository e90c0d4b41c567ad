"""What is printed for a person. A reader who has left, as `head` does, ends no run."""

import logging
import sys
from contextlib import suppress

from rich.console import Console
from rich.table import Table
from rich.text import Text

log = logging.getLogger(__name__)


class _Reporting(Console):
    def on_broken_pipe(self) -> None:
        """Say so to the caller; a Console of its own accord would end the process."""
        raise BrokenPipeError


def show(*parts: str | Table | Text) -> None:
    """Print tables, and lines as they are, on standard output, as far as someone reads it."""
    # what is left is thrown away at exit, by one_sentence()
    with suppress(BrokenPipeError):
        try:
            console = _Reporting(file=sys.stdout)
            for part in parts:
                console.print(part, markup=False, highlight=False, soft_wrap=True)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            log.warning("Standard output can't be written: %s.", error.strerror)
