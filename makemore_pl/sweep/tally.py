"""Reads the state of a sweep's jobs from its directory: finished, failed, running, and how many steps are left."""

import math
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from makemore_pl.running.run_lock import LOCK
from makemore_pl.sweep.job import METRICS, read_failure

LAST_CHECKPOINT = "checkpoints/last.ckpt"
TELLING = 0.05
"""The time left is shown when some job has taken this share of its steps. The first steps are slow, because they
compile and draw."""
TAIL = 2**18
"""The last step is searched in this many bytes at the end of diagnostics.jsonl."""


class Sweep:
    """The sweep that this process has started."""

    current: "Sweep | None" = None

    def __init__(self, directory: Path, jobs: Mapping[str, Sequence[str]]) -> None:
        """Args: jobs: name of a job -> its overrides."""
        self.directory = directory
        self.jobs = jobs
        self.command = uuid.uuid4().hex
        self.started = time.monotonic()
        self.before = self.steps_taken()
        self.stopped = False
        self.alone: list[str] = []
        """Jobs whose process was killed. They are run again one at a time, to find out which one causes that."""

    def stop(self) -> None:
        """The sweep is stopping, so no job waits any more."""
        self.stopped = True

    def failures(self) -> dict[str, str]:
        """Job -> reason, for the jobs that failed in this command."""
        said = {job: read_failure(self.directory / job) for job in self.jobs}
        return {job: each["reason"] for job, each in said.items() if each.get("command") == self.command}

    def finished(self) -> list[str]:
        return [job for job in self.jobs if (self.directory / job / METRICS).is_file()]

    def finished_now(self) -> bool:
        """Whether a job was finished since this command began."""
        return any(self.before[job] < 1 for job in self.finished())

    def settled(self) -> set[str]:
        """Jobs that are finished or that failed in this command."""
        return {*self.finished(), *self.failures()}

    def begun(self, running: bool) -> list[str]:
        """Jobs that run now (`running`), or jobs that were begun and whose process was killed (not `running`)."""
        settled = self.settled()
        jobs = [job for job in self.jobs if job not in settled and (self.directory / job / LOCK).exists()]
        return [job for job in jobs if is_locked(self.directory / job / LOCK) == running]

    def steps_taken(self) -> dict[str, float]:
        """Job -> the share of its steps that it has taken, according to its files."""
        return {job: _share(self.directory / job) for job in self.jobs}

    def seconds_left(self) -> float | None:
        """Seconds left by the pace of this command so far, if all jobs take equally long; None if it is too early."""
        shares, failed = self.steps_taken(), self.failures()
        taken = [shares[job] - self.before[job] for job in self.jobs]
        if max(taken, default=0) < TELLING:
            return None
        left = sum(1 - share for job, share in shares.items() if job not in failed)
        return left * (time.monotonic() - self.started) / sum(max(each, 0) for each in taken)

    def progress(self) -> str:
        """One line with the numbers of jobs that are done, running, waiting and failed, and the time left."""
        done, failed, running = len(self.finished()), len(self.failures()), len(self.begun(running=True))
        if self.stopped:
            saved = sum((self.directory / job / LAST_CHECKPOINT).exists() for job in self.jobs.keys() - self.settled())
            return f"{done} of {len(self.jobs)} jobs done, {saved} saved where they stood, {failed} failed"
        waiting = max(len(self.jobs) - done - failed - running, 0)
        line = f"{done} of {len(self.jobs)} jobs done, {running} running, {waiting} waiting, {failed} failed"
        seconds = self.seconds_left() if running or waiting else None
        if seconds is None:
            return line
        about = f"{math.ceil(seconds)} s" if seconds < 100 else f"{math.ceil(seconds / 60)} min"
        return f"{line}, about {about} left"


def _share(job: Path) -> float:
    if (job / METRICS).is_file():
        return 1.0
    try:
        max_steps = re.search(r"^  max_steps: (\d+)$", (job / "config.yaml").read_text(errors="replace"), re.MULTILINE)
        with (job / "diagnostics.jsonl").open("rb") as file:
            file.seek(max(file.seek(0, 2) - TAIL, 0))
            steps = re.findall(rb'"step": (\d+)', file.read())
    except OSError:
        return 0.0
    return min(int(steps[-1]) / int(max_steps[1]), 1.0) if steps and max_steps else 0.0


def is_locked(path: Path) -> bool:
    """Whether a living process holds this lock. A finished job has no lock file."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            if (path.parent / METRICS).exists():  # the job finished just now, and FileLock made the file again
                path.unlink(missing_ok=True)
            return False
    except Timeout:
        return True
    except OSError:  # the whole directory has vanished
        return False
