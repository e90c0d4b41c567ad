"""Ends a sweep on Ctrl-C or another signal, and ends its workers together with it."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from types import FrameType

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if sys.platform != "win32" else [])]


class Stopped(KeyboardInterrupt):
    """Raised when a signal ends the sweep. It is a KeyboardInterrupt, because launchers and Lightning clean up then."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def stop_on_signals() -> None:
    """Let the first signal raise Stopped in the main thread, and a second one end the process at once.

    Signals that were ignored when the process started, as nohup does with SIGHUP, are still ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, _leave)
    raise Stopped(number)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def stopped_by(error: BaseException) -> Stopped | None:
    """The signal that caused an error at the end of a run, if any: Lightning turns signals into SystemExit."""
    for each in (error, error.__context__):
        if isinstance(each, Stopped):
            return each
        if isinstance(each, KeyboardInterrupt):
            return Stopped(signal.SIGINT)
        if type(each).__name__ == "SIGTERMException":  # by name, so that Lightning need not be imported
            return Stopped(signal.SIGTERM)
    if isinstance(error, SystemExit) and error.code in [128 + number for number in SIGNALS]:
        return Stopped(int(error.code) - 128)
    return None


def end_with_parent() -> None:
    """End this worker process when the sweep's process is gone, for any reason. The worker itself ignores Ctrl-C.

    joblib calls this before a worker takes its first job. A thread watches the parent's process id, which works on
    every POSIX system. Linux's PR_SET_PDEATHSIG would need ctypes, and would kill the worker when the *thread* that
    started it ends, even if the parent process goes on.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def end_worker(stopped: Stopped) -> None:
    """End this worker process by the signal that its run has caught. The sweep goes on."""
    if multiprocessing.parent_process() is not None:
        number = stopped.exit_code - 128
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
