"""Runs scripts/train.py in a process to be killed: a real one, or a fork of this process, which needs no imports."""

import importlib
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "train.py"
HUNG = 600.0
"""A process that takes longer than these seconds counts as a hang."""


def warm() -> None:
    """Import what a run needs. It must not start a thread, because threads do not survive a fork."""
    for name in ("hydra.main", "lightning.pytorch.loggers", "matplotlib.figure", "tensorboard.summary"):
        importlib.import_module(name)
    importlib.import_module("makemore_pl.train")
    torch.set_num_threads(1)


def fork(overrides: Sequence[str], log: Path, environment: dict[str, str]) -> int:
    """The process id of a child in a session of its own that runs the script as the command line does."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for each in (1, 2):
            os.dup2(file, each)
        os.environ.update(environment)
        sys.argv = [str(SCRIPT), *overrides]
        runpy.run_path(str(SCRIPT), run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, deadline: float) -> int | None:
    """The exit code (negative for a signal) of a child that ends before `deadline` of the monotonic clock, or None."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.001)


def finish(overrides: Sequence[str], log: Path, environment: dict[str, str]) -> int | None:
    """The exit code of an undisturbed run; None where it hangs, in which case it is killed."""
    pid = fork(overrides, log, environment)
    code = ended(pid, time.monotonic() + HUNG)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return code


def start_sweep(overrides: Sequence[str], log: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """A real sweep in a session of its own, as a terminal starts it."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), "-m", *overrides],
            env=os.environ | environment,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def of_session(session: int) -> dict[int, str]:
    """Command lines of the processes of a session, by process id, as `ps` tells."""
    listed = subprocess.run(["ps", "-wweo", "pid=,sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in listed.splitlines()]
    return {int(pid): args for pid, sid, stat, args in rows if int(sid) == session and not stat.startswith("Z")}
