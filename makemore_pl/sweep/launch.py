"""Launches a sweep: shows a line of progress, runs the jobs of killed workers again, and stops on signals."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from makemore_pl.command_line import near
from makemore_pl.errors import explain, is_mistake
from makemore_pl.running.run_lock import LOCK
from makemore_pl.running.signals import Stopped, again
from makemore_pl.sweep.conclusion import conclude, look, say
from makemore_pl.sweep.job import fail, in_a_line
from makemore_pl.sweep.tally import Sweep

ON_TERMINAL, IN_FILE = 2.0, 60.0
"""Seconds between lines of progress: on a terminal, where a line replaces the last one, and in a file."""


def launch(main: Callable[[], Any]) -> None:
    """Run Hydra's main: a single run, or a sweep with a line of progress and a summary at the end.

    Raises:
        ValueError: jobs failed; the message has a table of the reasons.
    """
    try:
        _launch(main)
    except KeyboardInterrupt as error:
        if Sweep.current is None:
            raise
        sweep = Sweep.current
        sweep.stop()
        command = again(sys.argv, {"hydra.sweep.dir": str(sweep.directory)})
        say(f"\nstopped: {sweep.progress()}, in {sweep.directory}; go on with: {command}")
        sys.exit(error.code if isinstance(error, Stopped) else 130)


def _launch(main: Callable[[], Any]) -> None:
    try:
        with _showing_progress():
            _surviving(main)
    except Exception as error:
        sweep = Sweep.current
        if not is_mistake(error) or sweep is None or not (sweep.finished_now() or sweep.failures()):
            raise
        try:
            conclude(sweep)
        except ValueError as failures:
            raise ValueError(f"{explain(error)}\n{failures}") from error
        raise
    if sweep := Sweep.current:
        conclude(sweep)
        if lost := [job for job in sweep.jobs if job not in sweep.settled()]:
            raise ValueError(f"{len(lost)} of {len(sweep.jobs)} jobs failed and left no reason: {', '.join(lost)}.")


def _surviving(main: Callable[[], Any]) -> None:
    """Launch again for the jobs that are left if the launcher gives up because a job's process was killed.

    joblib then kills the processes of all running jobs. These jobs are run again, one at a time. A job whose process is
    killed again has failed.
    """
    fruitless = 0
    while True:
        settled = Sweep.current.settled() if Sweep.current else set()
        try:
            main()
        except Exception as error:
            if is_mistake(error) or (sweep := Sweep.current) is None:
                raise
            killed = sweep.begun(running=False)
            for job in killed:
                with suppress(OSError):
                    (sweep.directory / job / LOCK).unlink()
            died = f" The process of one of these jobs was killed: {', '.join(killed)}." if killed else ""
            say(f"The launcher gave up. {in_a_line(error)}{died}")
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
    terminal = sys.stderr is not None and sys.stderr.isatty()

    def show() -> None:
        while Sweep.current is None:
            if stop.wait(0.1):
                return
        count, where = len(Sweep.current.jobs), near(Sweep.current.directory)
        say(f"{count} {'job' if count == 1 else 'jobs'} in {where}\nwatch live   {look(Sweep.current)}")
        while not stop.is_set():
            say(Sweep.current.progress(), "\r\x1b[2K" if terminal else "", "" if terminal else "\n")
            stop.wait(ON_TERMINAL if terminal else IN_FILE)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if terminal and Sweep.current:
            say("", "\r\x1b[2K", "")
