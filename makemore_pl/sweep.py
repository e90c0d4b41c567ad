"""Sweeps: names of jobs, finished jobs skipped, interrupted ones resumed, failures recorded and survived.

Everything that one job knows of another lies in the sweep directory, so it is the same with every launcher.
"""

import hashlib
import json
import logging
import math
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from makemore_pl.config import Config, load_config, resolve
from makemore_pl.files import write_atomically

log = logging.getLogger(__name__)

FAILURE = "failure.json"
STARTED = "started.json"


def job_name(overrides: list[str], varied: list[str]) -> str:
    """A directory name that shows what varies, such as `gain=0.5_batch_size=8_seed=1`.

    The same for the same values, and another for others: what a file name can't hold is replaced, and then a few digits
    of a hash are added.
    """
    values = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    lasts = [key.rpartition(".")[2] for key in varied]
    labels = [last if lasts.count(last) == 1 else key for key, last in zip(varied, lasts, strict=True)]
    name = "_".join(f"{label}={values[key]}" for label, key in zip(labels, varied, strict=True)) or "job"
    safe = re.sub(r"[^\w.=+-]", "-", name)[:150]
    return safe if safe == name else f"{safe}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver(
    "job_name", lambda overrides, varied: job_name(list(overrides), varied.split("|") if varied else []), replace=True
)


class SweepCallback(Callback):
    """Names the sweep's directory and its jobs' before the sweeper starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        given = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        overrides = OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task])
        varied = [each.get_key_element().lstrip("+") for each in overrides if each.is_sweep_override()]
        jobs = math.prod(len(list(each.sweep_string_iterator())) for each in overrides if each.is_discrete_sweep())
        fixed = {
            each.get_key_element().lstrip("+"): each.get_value_element_as_str()
            for each in overrides
            if not each.is_sweep_override()
        }
        parts = [] if "experiment" in varied else [fixed.get("experiment", "default")]
        if not parts or not parts[0].startswith("sweep_"):
            parts += [key.rpartition(".")[2] for key in varied]
        hydra = config.hydra.overrides.hydra
        with open_dict(config):
            if not any(str(override).startswith("hydra.sweep.dir=") for override in hydra):
                config.hydra.sweep.dir = "outputs/sweeps/" + "_".join(parts)
                hydra.append(f"hydra.sweep.dir='{config.hydra.sweep.dir}'")
            hydra.append("hydra.sweep.subdir='${job_name:${hydra.overrides.task}," + "|".join(varied) + "}'")
            hydra.append("hydra.output_subdir=null")  # Hydra would write into finished jobs
            hydra.append("hydra.job_logging.root.handlers=[file]")
        Sweep.current = Sweep(Path(config.hydra.sweep.dir), jobs)


class Sweep:
    """The sweep that this process has started."""

    current: "Sweep | None" = None

    def __init__(self, directory: Path, jobs: int) -> None:
        self.directory = directory
        self.jobs = jobs
        self.started = time.time()

    def failures(self) -> dict[str, str]:
        """Why jobs failed, by job."""
        paths = sorted(self.directory.glob(f"*/{FAILURE}"))
        return {path.parent.name: json.loads(path.read_text())["reason"] for path in paths}

    def progress(self) -> str:
        """One line: done, running, failed, time left."""
        done = [path.stat().st_mtime for path in self.directory.glob("*/metrics.json")]
        fresh = sum(finished >= self.started for finished in done)
        failed = len(list(self.directory.glob(f"*/{FAILURE}")))
        running = len(list(self.directory.glob(f"*/{STARTED}")))
        left = self.jobs - len(done) - failed
        pace = (time.time() - self.started) / fresh * left if fresh else math.nan
        time_left = f", about {pace / 60:.0f} min left" if left > 0 and fresh else ""
        return f"{len(done)} of {self.jobs} jobs done, {running} running, {failed} failed{time_left}"


@contextmanager
def sweeping() -> Iterator[None]:
    """Around Hydra's main: a line of progress while a sweep runs, its summary at the end.

    Raises:
        ValueError: with a table of the reasons, when jobs failed.
    """
    stop = threading.Event()
    interval = 2.0 if sys.stderr.isatty() else 60.0

    def show() -> None:
        while not stop.wait(interval):
            if Sweep.current:
                end = "\r" if sys.stderr.isatty() else "\n"
                print(
                    f"\x1b[2K{Sweep.current.progress()}" if end == "\r" else Sweep.current.progress(),
                    end=end,
                    file=sys.stderr,
                    flush=True,
                )

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if Sweep.current:
            print(Sweep.current.progress(), file=sys.stderr)
            if list(Sweep.current.directory.glob("*/metrics.json")):
                from makemore_pl.report.summary import write_summary  # draws, so only when there is something to draw

                print(f"summary  {write_summary(Sweep.current.directory)}", file=sys.stderr)
    if Sweep.current and (failures := Sweep.current.failures()):
        rows = "\n".join(f"  {job}: {reason}" for job, reason in failures.items())
        raise ValueError(f"{len(failures)} of {Sweep.current.jobs} jobs failed; the others are not affected:\n{rows}")


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

    A failure is written to failure.json and returned as nan: no job takes others with it. Only Ctrl-C is raised.
    """
    directory = Path(HydraConfig.get().runtime.output_dir)
    metrics, failure, started = directory / "metrics.json", directory / FAILURE, directory / STARTED
    try:
        config = resolve(raw)
        refuse_other_config(directory, config)
        if metrics.exists():
            return float(json.loads(metrics.read_text())["val/loss"])
        failure.unlink(missing_ok=True)
        if config.trainer.devices > 1:
            raise ValueError("trainer.devices must be 1 in a sweep: jobs run side by side, each on one device.")
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(started, json.dumps({"time": time.time()}))
        last = directory / "checkpoints" / "last.ckpt"
        config = replace(
            config,
            ckpt_path=str(last) if last.exists() else None,
            trainer=replace(config.trainer, enable_progress_bar=False),
        )
        from makemore_pl.train import run

        return float(run(config, announce=False)["val/loss"])
    except BaseException as error:
        # Lightning turns Ctrl-C into sys.exit
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        reason = (
            str(error) if isinstance(error, (ValueError, FloatingPointError)) else f"{type(error).__name__}: {error}"
        )
        content = {"reason": reason, "traceback": traceback.format_exc()}
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(failure, json.dumps(content, indent=2))
        return math.nan
    finally:
        started.unlink(missing_ok=True)


def refuse_other_config(directory: Path, config: Config) -> None:
    """Raises ValueError for a directory that holds a run of another config."""
    if (directory / "config.yaml").exists() and config_hash(load_config(directory)) != config_hash(config):
        raise ValueError(
            f"{directory} holds a run of another config: name another hydra.sweep.dir, or move this one away."
        )
