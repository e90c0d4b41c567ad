"""Handles Ctrl-C, SIGTERM and SIGHUP, which end a run or a sweep early. It imports neither torch nor lightning."""

import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from makemore_pl.command_line import typed

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
ONE = 0.3
"""Signals within these seconds count as one, because `timeout` and a closing terminal send a signal twice."""


class Stopped(KeyboardInterrupt):
    """Raised when a signal has ended a run or a sweep. The message says where, and how to go on.

    It is a KeyboardInterrupt, because launchers and Lightning clean up then.

    Args:
        code: the exit status, 128 plus the signal's number.
    """

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code


def handle(handler: Callable[[int], None]) -> dict[int, Any]:
    """Let SIGNALS call handler(number); returns number -> earlier handler. It does nothing outside of the main thread.

    A signal that was ignored before, as SIGHUP is under nohup, is still ignored.
    """
    last = -math.inf

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > ONE:
            handler(number)

    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, hear) for number in heard}


def end_at_once() -> None:
    """Let a signal end the process without a word from now on, because all is done but Python's own clean-up."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def again(argv: Sequence[str], places: Mapping[str, str]) -> str:
    """A shell command with other values of some overrides, for any working directory.

    Args:
        argv: the script and its arguments, as typed in this working directory.
        places: key -> new value; an empty value leaves the override out.
    """
    script, *given = argv
    kept = [each for each in given if each.lstrip("+~").partition("=")[0] not in places]
    settings = [f"{key}={typed(place)}" for key, place in places.items() if place]
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it has been removed
        here = os.environ.get("PWD", "/")
    return f"cd {shlex.quote(here)} && {shlex.join([sys.executable, os.path.join(here, script), *kept, *settings])}"
