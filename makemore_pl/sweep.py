"""Sweeps: names of jobs, finished jobs skipped, interrupted ones resumed, failures recorded and survived.

Everything that one job knows of another lies in the sweep directory, so it is the same with every launcher.
"""

import hashlib
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from makemore_pl.config import Config, load_config, resolve
from makemore_pl.errors import USERS_MISTAKES, explain
from makemore_pl.files import write_atomically

METRICS = "metrics.json"
FAILURE = "failure.json"
LOCK = "running.lock"
"""Held while a job runs, by whatever process of whatever command; the kernel lets go of it when that dies."""
LONGEST = 150
COMMAND, ALONE = "MAKEMORE_SWEEP", "MAKEMORE_SWEEP_ALONE"
"""Environment of the jobs: which command runs them; which are to run now, joined by |, all when missing."""


def job_name(overrides: Sequence[str], varied: Sequence[str]) -> str:
    """A directory name that shows what varies, such as `gain=0.5_batch_size=8_seed=1`.

    The same for the same values, and another for others: what a file name can't hold is replaced, and then a few digits
    of a hash are added.
    """
    values = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    chosen = {key: values[key] for key in varied}
    parts = [f"{label}={value}" for label, value in zip(_labels(varied), chosen.values(), strict=True)]
    name = "_".join(parts) or "job"
    ambiguous = any("=" in value for value in chosen.values())
    return _file_name(name, repr(chosen) if ambiguous else name)


def _labels(keys: Sequence[str]) -> list[str]:
    """The last part of each key where that tells it from the others."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return [last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)]


def _file_name(name: str, identity: str) -> str:
    # no upper case: some file systems don't tell it from lower
    safe = re.sub(r"[^a-z0-9_.=+-]", "-", name)[:LONGEST]
    return safe if safe == name == identity else f"{safe}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def sweep_name(fixed: Mapping[str, str], varied: Sequence[str]) -> str:
    """A directory name for the sweep: experiment, what the command line fixes, what it varies."""
    labels = dict(zip([*fixed, *varied], _labels([*fixed, *varied]), strict=True))
    parts = [] if "experiment" in varied else [fixed.get("experiment", "default")]
    parts += [f"{labels[key]}={value}" for key, value in fixed.items() if key != "experiment"]
    name = "_".join([*parts, *(labels[key] for key in varied)])
    return _file_name(name, name)


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


def config_hash(config: Config) -> str:
    """Of everything that decides the result: all but where it is written and how it is shown."""
    shown = replace(config, ckpt_path=None, trainer=replace(config.trainer, enable_progress_bar=True))
    text = json.dumps(asdict(shown), sort_keys=True).replace(json.dumps(config.run_dir)[1:-1], "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_job() -> bool:
    """Whether this is one job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_job(raw: DictConfig) -> float:
    """Run one job of a sweep, or skip it when it is finished, or resume it; returns the validation loss.

    A failure is written to failure.json and returned as nan: no job takes others with it.

    Raises:
        ValueError: what concerns the whole sweep: a directory of another config, several devices. KeyboardInterrupt.
    """
    directory = Path(HydraConfig.get().runtime.output_dir)
    alone = os.environ.get(ALONE)
    if alone is not None and directory.name not in alone.split("|"):
        return math.nan
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it on Ctrl-C
    try:
        config = resolve(raw)
    except USERS_MISTAKES as error:
        if (directory / METRICS).exists():
            raise
        fail(directory, _command(), explain(error))
        return math.nan
    refuse_other_config(directory, config)
    if config.trainer.devices > 1:
        raise ValueError("trainer.devices must be 1 in a sweep: jobs run side by side, each on one device.")
    if (directory / METRICS).exists():
        return _val_loss(directory)
    with FileLock(directory / LOCK):  # waits where another command runs the same job
        try:
            return _run_locked(directory, config)
        finally:
            (directory / LOCK).unlink()


def _run_locked(directory: Path, config: Config) -> float:
    failure = directory / FAILURE
    if (directory / METRICS).exists():
        return _val_loss(directory)
    if failure.exists() and json.loads(failure.read_text())["command"] == _command():
        return math.nan
    failure.unlink(missing_ok=True)
    last = directory / "checkpoints" / "last.ckpt"
    try:
        from makemore_pl.train import run

        trainer = replace(config.trainer, enable_progress_bar=False)
        ckpt_path = str(last) if last.exists() else None
        return float(run(replace(config, ckpt_path=ckpt_path, trainer=trainer), announce=False)["val/loss"])
    except BaseException as error:
        # Lightning turns Ctrl-C into sys.exit
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        reason = (
            explain(error)
            if isinstance(error, USERS_MISTAKES)
            else f"{type(error).__name__}: {error}".removesuffix(": ")
        )
        fail(directory, _command(), reason, traceback.format_exc())
        return math.nan


def _command() -> str:
    return os.environ.get(COMMAND, "")


def _val_loss(directory: Path) -> float:
    return float(json.loads((directory / METRICS).read_text())["val/loss"])


def fail(directory: Path, command: str, reason: str, details: str = "") -> None:
    """Write failure.json."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"reason": reason.partition("\n")[0], "command": command, "traceback": details}
    write_atomically(directory / FAILURE, json.dumps(content, indent=2))


def refuse_other_config(directory: Path, config: Config) -> None:
    """Raises ValueError for a directory that holds a run of another config."""
    if (directory / "config.yaml").exists() and config_hash(load_config(directory)) != config_hash(config):
        raise ValueError(
            f"{directory} holds a run of another config: name another hydra.sweep.dir, or move this one away."
        )
