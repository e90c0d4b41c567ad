"""Ctrl-C, SIGTERM and SIGHUP: what ends a run or a sweep early, and how it goes on. Imports no torch, no lightning."""

import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from makemore_pl.command_line import typed

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
ONE = 0.3
"""Seconds in which signals are one: `timeout` and a closing terminal send it to a process and to its group."""


class Stopped(KeyboardInterrupt):
    """A signal has ended a run or a sweep; the message says where, and how to go on.

    A KeyboardInterrupt, because launchers and Lightning clean up after that one.

    Args:
        code: the exit status, 128 and the signal's number.
    """

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code


def handle(handler: Callable[[int], None]) -> dict[int, Any]:
    """Call handler(number) at each of SIGNALS, in the main thread; returns what was called before, by number.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
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


def again(argv: Sequence[str], places: Mapping[str, str]) -> str:
    """A command with other values of these overrides, to be pasted into a shell in whatever directory.

    Args:
        argv: the script, and what was typed behind it in this working directory.
        places: by key; without a value the override is left out.
    """
    script, *given = argv
    kept = [each for each in given if each.lstrip("+~").partition("=")[0] not in places]
    settings = [f"{key}={typed(place)}" for key, place in places.items() if place]
    whole = shlex.join([sys.executable, str(Path(script).absolute()), *kept, *settings])
    return f"cd {shlex.quote(os.getcwd())} && {whole}"
