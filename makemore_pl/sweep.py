"""A sweep: its jobs named before it starts, a line of progress while it runs, killed workers survived, a summary."""

import itertools
import json
import math
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from makemore_pl.directories import job_name, sweep_name
from makemore_pl.errors import USERS_MISTAKES, explain
from makemore_pl.job import ALONE, COMMAND, FAILURE, LOCK, METRICS, fail

OmegaConf.register_new_resolver(
    "job_name", lambda overrides, varied: job_name(list(overrides), varied.split("|") if varied else []), replace=True
)


class SweepCallback(Callback):
    """Names the sweep's directory and its jobs' before the sweeper starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self._set_up(config)
        except USERS_MISTAKES as error:
            sys.exit(f"error: {explain(error)}")  # Hydra makes a warning of any other exception here

    def _set_up(self, config: DictConfig) -> None:
        params = _parse([f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()])
        typed = _parse(config.hydra.overrides.task)
        choices = {key: list(_values(each)) for key, each in (params | typed).items()}
        varied = [key.lstrip("+") for key, each in (params | typed).items() if each.is_sweep_override()]
        _refuse_nested_sweeps(config, choices.get("+experiment", []))
        jobs = [
            job_name([f"{key}={value}" for key, value in zip(choices, values, strict=True)], varied)
            for values in itertools.product(*choices.values())
        ]
        fixed = {key.lstrip("+"): choices[key][0] for key, each in typed.items() if not each.is_sweep_override()}
        default = f"outputs/sweeps/{sweep_name(fixed, [key for key in varied if key not in params])}"
        overrides = config.hydra.overrides.hydra
        chosen = any(str(override).startswith("hydra.sweep.dir=") for override in overrides)
        # absolute: a job may run in another working directory
        directory = Path(config.hydra.sweep.dir if chosen else default).absolute()
        sweep = Sweep.current = Sweep.current or Sweep(directory, jobs)
        quoted = str(directory).replace("'", "\\'")
        with open_dict(config):
            config.hydra.sweep.dir = str(directory)
            overrides.append(f"hydra.sweep.dir='{quoted}'")
            overrides.append("hydra.sweep.subdir='${job_name:${hydra.overrides.task}," + "|".join(varied) + "}'")
            overrides.append("hydra.output_subdir=null")  # Hydra would write into finished jobs
            overrides.append("hydra.job_logging.root.handlers=[file]")
            overrides.append(f"+hydra.job.env_set.{COMMAND}={sweep.command}")
            if sweep.alone:
                overrides.append(f"+hydra.job.env_set.{ALONE}='{'|'.join(sweep.alone)}'")
                config.hydra.sweeper.max_batch_size = 1
            if "batch_size" in config.hydra.launcher:
                config.hydra.launcher.batch_size = 1  # joblib puts jobs after quickly skipped ones into one batch


def _parse(overrides: Sequence[str]) -> dict[str, Override]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return {each.get_key_element(): each for each in parser.parse_overrides(list(overrides))}


def _values(override: Override) -> Iterator[str]:
    if not override.is_sweep_override():
        yield override.get_value_element_as_str()
    elif override.is_discrete_sweep():
        yield from override.sweep_string_iterator()
    else:
        raise ValueError(f"{override.input_line}: name the values to sweep over, such as 0.5,1,2 or range(1,4).")


def _refuse_nested_sweeps(config: DictConfig, experiments: Sequence[str]) -> None:
    loader = GlobalHydra.instance().config_loader()
    for experiment in experiments if len(experiments) > 1 else ():
        if loader.load_sweep_config(config, [f"+experiment={experiment}"]).hydra.sweeper.params:
            raise ValueError(
                f"+experiment={experiment} is a sweep of its own, and Hydra would ignore what it varies here: "
                "run such files one after another."
            )


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
        """Why jobs failed, by job."""
        paths = [self.directory / job / FAILURE for job in self.jobs]
        return {path.parent.name: json.loads(path.read_text())["reason"] for path in paths if path.exists()}

    def finished(self) -> dict[str, float]:
        """When jobs were finished, by job."""
        paths = [self.directory / job / METRICS for job in self.jobs]
        return {path.parent.name: path.stat().st_mtime for path in paths if path.exists()}

    def begun(self, running: bool) -> list[str]:
        """Jobs that run, or that were begun and don't run any more, for their process was killed."""
        jobs = [job for job in self.jobs if (self.directory / job / LOCK).exists() and job not in self.finished()]
        return [job for job in jobs if is_locked(self.directory / job / LOCK) == running]

    def progress(self) -> str:
        """One line: done, running, failed, time left."""
        done = self.finished()
        failed = len(self.failures())
        fresh = sum(finished >= self.started for finished in done.values())
        left = len(self.jobs) - len(done) - failed
        seconds = (time.time() - self.started) / fresh * left if fresh else 0
        time_left = f", about {math.ceil(seconds / 60)} min left" if seconds else ""
        running = len(self.begun(running=True))
        return f"{len(done)} of {len(self.jobs)} jobs done, {running} running, {failed} failed{time_left}"


def is_locked(path: Path) -> bool:
    """Whether a process that is alive holds this lock."""
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


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
    if Sweep.current:
        _conclude(Sweep.current)


def _surviving(main: Callable[[], Any]) -> None:
    """Launch again for what is left when the launcher gives up because a job's process was killed.

    joblib then kills the processes of all jobs. Those are run again, one at a time; who is killed again has failed.
    """
    fruitless = 0
    while True:
        settled = _settled()
        try:
            main()
        except USERS_MISTAKES:
            raise
        except Exception as error:
            if (sweep := Sweep.current) is None:
                raise
            killed = sweep.begun(running=False)
            for job in killed:
                (sweep.directory / job / LOCK).unlink(missing_ok=True)
            print(f"A process was killed while these jobs ran: {', '.join(killed) or 'none'}.", file=sys.stderr)
            if sweep.alone:
                for job in set(killed) & set(sweep.alone):
                    fail(sweep.directory / job, sweep.command, "its process was killed twice, perhaps out of memory")
                sweep.alone = [job for job in sweep.alone if job not in _settled()]
            else:
                sweep.alone = killed
            fruitless = fruitless + 1 if not killed and settled == _settled() else 0
            if fruitless == 2:
                reason = str(error).partition("\n")[0]
                raise ValueError(
                    f"The launcher fails before any job begins. {type(error).__name__}: {reason}"
                ) from error
        else:
            if Sweep.current is None or not Sweep.current.alone:
                return
            Sweep.current.alone = []


def _settled() -> set[str]:
    return {*Sweep.current.finished(), *Sweep.current.failures()} if Sweep.current else set()


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
    print(sweep.progress(), file=sys.stderr)
    if sweep.finished():
        from makemore_pl.report.summary import write_summary  # draws, so only when there is something to draw

        print(f"summary  {write_summary(sweep.directory)}", file=sys.stderr)
    if failures := sweep.failures():
        rows = "\n".join(f"  {job}: {reason}" for job, reason in failures.items())
        raise ValueError(f"{len(failures)} of {len(sweep.jobs)} jobs failed; the others are not affected:\n{rows}")
