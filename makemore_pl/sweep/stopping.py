"""What ends a sweep early: Ctrl-C or another signal to its process; and its workers end with it."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from types import FrameType

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if sys.platform != "win32" else [])]


class Stopped(KeyboardInterrupt):
    """A signal asks the sweep to end. A KeyboardInterrupt, because launchers and Lightning clean up after that one."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def stop_on_signals() -> None:
    """The first signal raises Stopped in the main thread; a second one, during the clean-up, ends the process at once.

    Signals that whoever started the process ignores, as nohup does, stay ignored.
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
    """The signal behind an error that a run ends with: Lightning turns Ctrl-C and SIGTERM into SystemExit."""
    for each in (error, error.__context__):
        if isinstance(each, Stopped):
            return each
        if isinstance(each, KeyboardInterrupt):
            return Stopped(signal.SIGINT)
        if type(each).__name__ == "SIGTERMException":  # Lightning's, which is not imported for this alone
            return Stopped(signal.SIGTERM)
    if isinstance(error, SystemExit) and error.code in [128 + number for number in SIGNALS]:
        return Stopped(int(error.code) - 128)
    return None


def end_with_parent() -> None:
    """End this worker process when the sweep's process is gone, whatever ended that; Ctrl-C is left to it.

    joblib calls it before a worker takes its first job. A thread looks at the parent's process id, which works wherever
    there are such ids. Linux's PR_SET_PDEATHSIG would need ctypes, and kills when the parent's *thread* ends that
    started the worker.
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
    """End this worker process by the signal that its run has caught; the sweep itself goes on."""
    if multiprocessing.parent_process() is not None:
        number = stopped.exit_code - 128
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
