"""Ends a sweep and its jobs early: on a signal to its process or to a worker, or if its process dies."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from makemore_pl.errors import quiet_threads
from makemore_pl.running.signals import ONE, Stopped, handle

GRACE = 10.0
"""The jobs of a stopped sweep have this many seconds to save."""
leaving = threading.Event()
"""Set in a worker process that has been told to end."""


def stop_on_signals(stop: Callable[[], None], running: Callable[[], object]) -> None:
    """Let the first signal make all jobs save and then raise Stopped, and a second signal end the process at once.

    Args:
        stop: is called first.
        running: says whether jobs are still running.
    """
    told = False

    def obey(number: int) -> None:
        nonlocal told
        if told:
            os._exit(128 + number)
        told = True
        stop()
        if workers := multiprocessing.active_children():
            for worker in workers:
                worker.terminate()
            with suppress(OSError):  # not by print(), because the signal may have interrupted a print()
                os.write(2, b"\nstopping: jobs are saving; another signal ends them at once\n")
            time.sleep(ONE)
            deadline = time.monotonic() + GRACE
            while running() and time.monotonic() < deadline:
                time.sleep(0.05)
        raise Stopped("", 128 + number)

    handle(obey)


def set_up_worker() -> None:
    """Let this worker process end when the sweep's process ends. The worker itself ignores Ctrl-C.

    joblib calls this before a worker takes its first job. A thread watches the parent's process id, which works on
    every POSIX system. Linux's PR_SET_PDEATHSIG would need ctypes, and would kill the worker when the *thread* that
    started it ends, even if the parent process goes on.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    quiet_threads()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handle(end_worker)

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def end_worker(number: int) -> None:
    """End this worker process by a signal, but wait until its sweep has had time to stop too.

    joblib kills all other workers when one dies, and those may still be saving. If the sweep has not got the signal, it
    goes on, and runs the ended jobs again.
    """
    leaving.set()
    end = threading.Timer(1.2 * GRACE, os._exit, [128 + number])
    end.daemon = True
    end.start()


def stay_if_leaving() -> None:
    """If this worker is about to end, wait for that here: it takes no other job and sends no result.

    A worker that is killed while it sends a result leaves half of it in joblib's pipe, and joblib waits for the rest.
    """
    while leaving.is_set():
        time.sleep(1)
