"""A sweep as it runs: a line of progress, killed workers survived, failures and a summary at the end."""

import json
import math
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from makemore_pl.errors import USERS_MISTAKES, explain
from makemore_pl.sweep.job import FAILURE, LOCK, METRICS, fail, in_a_line


class Sweep:
    """The sweep that this process has started."""

    current: "Sweep | None" = None

    def __init__(self, directory: Path, jobs: list[str]) -> None:
        self.directory = directory
        self.jobs = jobs
        self.command = uuid.uuid4().hex
        self.started = time.time()
        self.alone: list[str] = []
        """Jobs whose process was killed: to be run again, one at a time, so that it shows which of them is at fault."""

    def failures(self) -> dict[str, str]:
        """Why jobs of this command failed, by job."""
        found = {}
        for job in self.jobs:
            with suppress(OSError):  # there is none, or another command has just begun the job anew
                failure = json.loads((self.directory / job / FAILURE).read_text())
                if failure["command"] == self.command:
                    found[job] = failure["reason"]
        return found

    def finished(self) -> dict[str, float]:
        """When jobs were finished, by job."""
        found = {}
        for job in self.jobs:
            with suppress(OSError):
                found[job] = (self.directory / job / METRICS).stat().st_mtime
        return found

    def settled(self) -> set[str]:
        """Jobs that are finished or that failed in this command."""
        return {*self.finished(), *self.failures()}

    def begun(self, running: bool) -> list[str]:
        """Jobs that run, or that were begun and don't run any more, for their process was killed."""
        settled = self.settled()
        jobs = [job for job in self.jobs if job not in settled and (self.directory / job / LOCK).exists()]
        return [job for job in jobs if is_locked(self.directory / job / LOCK) == running]

    def seconds(self) -> list[float]:
        """How long the jobs took that were finished since this command began."""
        found = []
        for job, end in self.finished().items():
            with suppress(OSError):
                if end >= self.started:
                    found.append(end - (self.directory / job / "config.yaml").stat().st_mtime)
        return found

    def progress(self) -> str:
        """One line: done, running, failed, time left."""
        done, failed, running = len(self.finished()), len(self.failures()), len(self.begun(running=True))
        left = len(self.jobs) - done - failed
        seconds = self.seconds()
        minutes = sum(seconds) / len(seconds) * left / max(running, 1) / 60 if seconds else 0
        time_left = f", about {math.ceil(minutes)} min left" if minutes else ""
        return f"{done} of {len(self.jobs)} jobs done, {running} running, {failed} failed{time_left}"


def is_locked(path: Path) -> bool:
    """Whether a process that is alive holds this lock; a finished job is left without the file."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            if (path.parent / METRICS).exists():  # finished a moment ago, and FileLock has made the file again
                path.unlink(missing_ok=True)
            return False
    except Timeout:
        return True
    except OSError:  # the whole directory has vanished
        return False


def launch(main: Callable[[], Any]) -> None:
    """Hydra's main: one run, or a sweep with a line of progress while it runs and its summary at the end.

    Raises:
        ValueError: with a table of the reasons, when jobs failed.
    """
    try:
        with _showing_progress():
            _surviving(main)
    except KeyboardInterrupt:
        if Sweep.current is None:
            raise
        print(
            f"\nstopped: {Sweep.current.progress()}. The same command goes on from here: finished jobs are kept, "
            "interrupted ones resumed from their last checkpoint.",
            file=sys.stderr,
        )
        sys.exit(130)
    except USERS_MISTAKES as error:
        if (sweep := Sweep.current) is None or not (sweep.seconds() or sweep.failures()):
            raise
        try:
            _conclude(sweep)
        except ValueError as failures:
            raise ValueError(f"{explain(error)}\n{failures}") from error
        raise
    if Sweep.current:
        _conclude(Sweep.current)


def _surviving(main: Callable[[], Any]) -> None:
    """Launch again for what is left when the launcher gives up because a job's process was killed.

    joblib then kills the processes of all jobs. Those are run again, one at a time; who is killed again has failed.
    """
    fruitless = 0
    while True:
        settled = Sweep.current.settled() if Sweep.current else set()
        try:
            main()
        except USERS_MISTAKES:
            raise
        except Exception as error:
            if (sweep := Sweep.current) is None:
                raise
            killed = sweep.begun(running=False)
            for job in killed:
                with suppress(OSError):
                    (sweep.directory / job / LOCK).unlink()
            died = f" The process of one of these jobs was killed: {', '.join(killed)}." if killed else ""
            print(f"The launcher gave up. {in_a_line(error)}{died}", file=sys.stderr)
            if sweep.alone:
                for job in set(killed) & set(sweep.alone):
                    fail(sweep.directory / job, sweep.command, "its process was killed twice, perhaps out of memory")
                sweep.alone = [job for job in sweep.alone if job not in sweep.settled()]
            else:
                sweep.alone = killed
            fruitless = fruitless + 1 if not killed and settled == sweep.settled() else 0
            if fruitless == 2:
                raise ValueError(f"The launcher fails and no job gets on. {in_a_line(error)}") from error
        else:
            if Sweep.current is None or not Sweep.current.alone:
                return
            Sweep.current.alone = []


@contextmanager
def _showing_progress() -> Iterator[None]:
    stop = threading.Event()
    terminal = sys.stderr.isatty()

    def show() -> None:
        while not stop.wait(2.0 if terminal else 60.0):
            if Sweep.current:
                start, end = ("\r\x1b[2K", "") if terminal else ("", "\n")
                print(f"{start}{Sweep.current.progress()}", end=end, file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if terminal and Sweep.current:
            print("\r\x1b[2K", end="", file=sys.stderr)


def _conclude(sweep: Sweep) -> None:
    failures = sweep.failures()
    print(sweep.progress(), file=sys.stderr)
    if sweep.finished():
        try:
            from makemore_pl.report.summary import write_summary  # draws, so only when there is something to draw

            print(f"summary  {write_summary(sweep.directory)}", file=sys.stderr)
        except Exception as error:  # nothing may hide the failures
            print(f"There is no summary. {in_a_line(error)}", file=sys.stderr)
    if failures:
        rows = "\n".join(f"  {job}: {reason}" for job, reason in failures.items())
        raise ValueError(f"{len(failures)} of {len(sweep.jobs)} jobs failed; the others are not affected:\n{rows}")
