"""What ends a sweep early, and its jobs with it: a signal to its process or to a worker, or that process's death."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from makemore_pl.running.signals import Stopped, handle

GRACE = 10.0
"""Seconds that the jobs of a stopped sweep may take to save where they stand."""


def stop_on_signals(stop: Callable[[], None], running: Callable[[], object]) -> None:
    """The first signal lets the jobs save where they stand and raises Stopped in the main thread; a second one ends the
    process at once.

    Args:
        stop: called first. running: whether jobs are still running.
    """
    told = False

    def obey(number: int) -> None:
        nonlocal told
        if told:
            os._exit(128 + number)
        told = True
        stop()
        if workers := multiprocessing.active_children():
            with suppress(OSError):  # not print: that may be what was interrupted
                os.write(2, b"\nstopping: jobs save where they stand; another signal ends them at once\n")
            for each in workers:
                each.terminate()
            deadline = time.monotonic() + GRACE
            while running() and time.monotonic() < deadline:
                time.sleep(0.05)
        raise Stopped("", 128 + number)

    handle(obey)


def set_up_worker() -> None:
    """Let this worker process end with the sweep's: joblib calls it before a worker takes its first job.

    A thread looks at the parent's process id, which works wherever there are such ids. Linux's PR_SET_PDEATHSIG would
    need ctypes, and kills when the parent's *thread* ends that started the worker. Ctrl-C is left to the sweep.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handle(end_worker)

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def end_worker(number: int) -> None:
    """End this worker process by a signal, but only when its sweep has had the time to stop as well.

    joblib kills all other workers when one dies, and those may still be saving. A sweep that has not got the signal
    goes on: it runs the jobs again that this has ended.
    """
    time.sleep(1.2 * GRACE)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
