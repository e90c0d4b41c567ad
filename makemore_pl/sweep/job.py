"""One job of a sweep: skipped when finished, resumed when interrupted, its failure recorded.

Everything that one job knows of another lies in the sweep directory, so it is the same with every launcher.
"""

import json
import logging
import math
import multiprocessing
import os
import traceback
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from makemore_pl.config import Config, DataConfig, resolve
from makemore_pl.config.stored_config import load_config
from makemore_pl.errors import USERS_MISTAKES, explain, is_mistake
from makemore_pl.files import write_atomically
from makemore_pl.running.run_lock import alone_in
from makemore_pl.running.signals import Stopped
from makemore_pl.sweep.gpu import take_gpu
from makemore_pl.sweep.stopping import end_worker

log = logging.getLogger(__name__)

METRICS = "metrics.json"
FAILURE = "failure.json"
FIGURES, DOCTOR = "makemore_pl.diagnostics.Figures", "makemore_pl.diagnostics.Doctor"
LOSSES = "makemore_pl.diagnostics.jsonl.JSONLinesLogger"
STOPPING = {"stop_on_critical": {"_target_": "makemore_pl.running.hopeless.StopOnCritical"}}
GROUPS = ("data", "model", "optim", "trainer")
_ELSEWHERE = "name another hydra.sweep.dir, or move this one away."
COMMAND, ALONE = "MAKEMORE_SWEEP", "MAKEMORE_SWEEP_ALONE"
"""Environment of the jobs: which command runs them; which are to run now, joined by |, all when missing."""


def decisive(config: Config) -> dict[str, Any]:
    """What decides the result, by dotted key: all but where it is written, how it is shown, and what only watches it.

    Callbacks and loggers of makemore_pl change no bit of a run, so a run goes on whatever of them there are, and
    wherever their classes have moved. Callbacks of others may change anything.
    """
    nested = asdict(config)
    found = {f"{group}.{key}": each for group in GROUPS for key, each in nested[group].items()}
    del found["trainer.enable_progress_bar"]
    found |= {"doctor.stop_on_critical": config.doctor.stop_on_critical}
    found |= {"experiment": config.experiment, "seed": config.seed}
    others = {name: node for name, node in config.callbacks.items() if not node["_target_"].startswith("makemore_pl.")}
    in_place = json.dumps(others, sort_keys=True).replace(json.dumps(config.run_dir)[1:-1], "")
    return found | {f"callbacks.{name}": node for name, node in json.loads(in_place).items()}


def _last_pictures(callbacks: dict[str, Any]) -> dict[str, Any]:
    """With Figures at the last step only, unless its steps are given.

    On cores that are all busy no thread hides a drawing. Histograms writes the numbers of more pictures than these to
    diagnostics.jsonl, from which scripts/report.py draws.
    """
    return {
        name: {"steps": [], **each} if each.get("_target_") == FIGURES else each for name, each in callbacks.items()
    }


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
    try:
        config = resolve(raw)
    except USERS_MISTAKES as error:
        if (directory / METRICS).exists():
            raise
        fail(directory, _command(), explain(error))
        return math.nan
    refuse_other_run(directory, config)
    if config.trainer.devices > 1:
        raise ValueError("trainer.devices must be 1 in a sweep: jobs run side by side, each on one device.")
    targets = {each["_target_"] for each in (*config.callbacks.values(), *config.logger.values())}
    if config.doctor.stop_on_critical and not targets >= {DOCTOR, LOSSES}:
        raise ValueError("doctor.stop_on_critical needs callbacks=diagnostics and logger=tensorboard or jsonl.")
    if (directory / METRICS).exists():
        return _val_loss(directory)
    if config.trainer.accelerator != "cpu":
        take_gpu()
    try:
        with alone_in(directory, wait=True):  # where another command runs the same job
            return _run_locked(directory, config)
    except Stopped as stopped:
        if multiprocessing.parent_process() is not None:
            end_worker(stopped.code - 128)
        raise


def _run_locked(directory: Path, config: Config) -> float:
    failure = directory / FAILURE
    if (directory / METRICS).exists():
        return _val_loss(directory)
    if read_failure(directory).get("command") == _command():
        return math.nan
    failure.unlink(missing_ok=True)
    try:
        from makemore_pl.train import run

        trainer = replace(config.trainer, enable_progress_bar=False)
        ckpt_path = _whole_checkpoint(directory / "checkpoints")
        callbacks = _last_pictures(config.callbacks) | (STOPPING if config.doctor.stop_on_critical else {})
        job = replace(config, ckpt_path=ckpt_path, trainer=trainer, callbacks=callbacks)
        return float(run(job, announce=False)["val/loss"])
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        fail(directory, _command(), in_a_line(error), traceback.format_exc())
        return math.nan


def _whole_checkpoint(directory: Path) -> str | None:
    """The checkpoint to resume from; None without one that can be used."""
    path = next((directory / name for name in ("last.ckpt", "best.ckpt") if (directory / name).is_file()), None)
    if path is None:
        return None
    from makemore_pl.checkpoint import usable_checkpoint

    try:
        return str(usable_checkpoint(path))
    except ValueError as error:
        log.warning("%s It is removed, and the job starts from step 0.", error)
        for name in ("last.ckpt", "best.ckpt"):
            (directory / name).unlink(missing_ok=True)
        return None


def in_a_line(error: BaseException) -> str:
    """Why something failed: a user's mistake as a sentence, anything else with its type."""
    text = explain(error) if is_mistake(error) else f"{type(error).__name__}: {error}".removesuffix(": ")
    return text.strip().partition("\n")[0]


def _command() -> str:
    return os.environ.get(COMMAND, "")


def _val_loss(directory: Path) -> float:
    return float(_read_metrics(directory)["val/loss"])


def _read_metrics(directory: Path) -> dict[str, Any]:
    path = directory / METRICS
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        metrics = None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("val/loss"), float):
        raise ValueError(f"{path} is damaged. Remove it, and the same command runs this job again.")
    return metrics


def read_failure(directory: Path) -> dict[str, str]:
    """What failure.json says, as fail has written it; empty where there is none, or none that can be read."""
    try:
        failure = json.loads((directory / FAILURE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # another command may have begun the job anew
        return {}
    return failure if isinstance(failure, dict) else {}


def fail(directory: Path, command: str, reason: str, details: str = "") -> None:
    """Write failure.json."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"reason": reason.partition("\n")[0], "command": command, "traceback": details}
    write_atomically(directory / FAILURE, json.dumps(content, indent=2))


def refuse_other_run(directory: Path, config: Config) -> None:
    """Raises ValueError for a directory that holds a run of another config, or a finished one of other words."""
    if not (directory / "config.yaml").exists():
        return
    theirs, ours = decisive(load_config(directory)), decisive(config)
    keys = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
    if keys:
        differing = ", ".join(f"{key}={theirs.get(key)} (here {ours.get(key)})" for key in keys)
        raise ValueError(f"{directory} holds a run of another config, {differing}: {_ELSEWHERE}")
    path = config.data.path
    if path and Path(path).exists() and (directory / METRICS).exists():
        trained_on = _read_metrics(directory).get("words_sha256")
        if trained_on not in (None, _words(config.data.source, path, Path(path).stat().st_mtime_ns)):
            raise ValueError(f"{directory} holds a run on other words than {path} has now: {_ELSEWHERE}")


@lru_cache  # all jobs of a sweep ask for the same
def _words(source: str, path: str, changed: int) -> str:
    from makemore_pl.words import fingerprint, load_words  # with all that can fetch a file: --help has no need of it

    return fingerprint(load_words(DataConfig(source=source, path=path)))
