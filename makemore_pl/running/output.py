"""Prints for people. A run goes on if the reader of its output has ended, as `head` does."""

import logging
import re
import shutil
import sys
import textwrap
from contextlib import suppress

from rich.console import Console
from rich.table import Table
from rich.text import Text

log = logging.getLogger(__name__)


class _Reporting(Console):
    def on_broken_pipe(self) -> None:
        """Let the caller decide what to do; rich's Console would end the process."""
        raise BrokenPipeError


NARROW = 20
"""Columns below which nothing is wrapped."""


def wrapped(words: str, taken: int = 0) -> list[str]:
    """A sentence in lines that fit a terminal, each below the first one's first word; whole where no one sees it.

    Not for commands, which are pasted in one piece.

    Args:
        taken: columns that something else takes.
    """
    width = shutil.get_terminal_size().columns - taken
    if not sys.stdout.isatty() or width < NARROW:
        return [words]
    under = re.match(r" *(?:\d\. )?", words)
    assert under
    return textwrap.wrap(
        words, width, subsequent_indent=" " * under.end(), break_long_words=False, break_on_hyphens=False
    )


def show(*parts: str | Table | Text) -> None:
    """Print tables and unwrapped lines on standard output, until its reader has ended."""
    # one_sentence() discards the rest at exit
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
