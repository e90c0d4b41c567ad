"""One job of a sweep: it is skipped if it is finished, resumed if it was interrupted, and its failure is recorded.

Jobs learn about each other only from files in the sweep directory, so they work with every launcher.
"""

import json
import logging
import math
import multiprocessing
import os
import sys
import traceback
from contextlib import suppress
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
from makemore_pl.stored_files import read_json
from makemore_pl.sweep.gpu import take_gpu
from makemore_pl.sweep.stopping import end_worker, leaving, stay_if_leaving

log = logging.getLogger(__name__)

METRICS = "metrics.json"
FAILURE = "failure.json"
FIGURES, DOCTOR = "makemore_pl.diagnostics.Figures", "makemore_pl.diagnostics.Doctor"
LOSS_RECORDER = "makemore_pl.diagnostics.jsonl.JSONLinesLogger"
STOPPING = {"stop_on_critical": {"_target_": "makemore_pl.running.hopeless.StopOnCritical"}}
COMPARED_GROUPS = ("data", "model", "optim", "trainer")
_ELSEWHERE = "name another hydra.sweep.dir, or move this one away."
COMMAND, ALONE = "MAKEMORE_SWEEP", "MAKEMORE_SWEEP_ALONE"
"""Environment variables of the jobs: the id of the command that runs them; and the names of the jobs that should run
now, joined by | (all jobs if it is not set)."""


def decisive(config: Config) -> dict[str, Any]:
    """Dotted key -> value of all settings that decide the result of a run.

    Settings that decide only where a run is written or what it shows are left out, and so are callbacks and loggers of
    makemore_pl, which change no bit of a run. So a run can be resumed with others of these, or after their classes have
    moved. Other callbacks may change the result.
    """
    nested = asdict(config)
    found = {f"{group}.{key}": each for group in COMPARED_GROUPS for key, each in nested[group].items()}
    del found["trainer.enable_progress_bar"]
    found |= {"doctor.stop_on_critical": config.doctor.stop_on_critical}
    found |= {"experiment": config.experiment, "seed": config.seed}
    others = {name: node for name, node in config.callbacks.items() if not node["_target_"].startswith("makemore_pl.")}
    in_place = json.dumps(others, sort_keys=True).replace(json.dumps(config.run_dir)[1:-1], "")
    return found | {f"callbacks.{name}": node for name, node in json.loads(in_place).items()}


def _last_pictures(callbacks: dict[str, Any]) -> dict[str, Any]:
    """The callbacks, with Figures drawing only at the last step unless its steps are given.

    Drawing takes time that the other jobs need. scripts/report.py can draw more pictures later, from the numbers that
    Histograms writes to diagnostics.jsonl.
    """
    return {
        name: {"steps": [], **each} if each.get("_target_") == FIGURES else each for name, each in callbacks.items()
    }


def is_job() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_job(raw: DictConfig) -> float:
    """Run, resume or skip one job of a sweep; returns its validation loss.

    If the job fails, the reason is written to failure.json and nan is returned, so that the other jobs go on.

    Raises:
        ValueError: the whole sweep can't go on, because a directory has a finished run, or a run of another config.
        KeyboardInterrupt: a signal has come.
    """
    stay_if_leaving()
    directory = Path(HydraConfig.get().runtime.output_dir)
    alone = os.environ.get(ALONE)
    if alone is not None and directory.name not in alone.split("|"):
        return math.nan
    try:
        config = resolve(raw)
        _refuse_unfit(config)
    except USERS_MISTAKES as error:
        if (directory / METRICS).exists():
            raise
        fail(directory, _command(), explain(error))
        return math.nan
    refuse_other_run(directory, config)
    if (directory / METRICS).exists():
        return _val_loss(directory)
    if config.trainer.accelerator != "cpu":
        take_gpu()
    try:
        with alone_in(directory, wait=True):  # another command may be running the same job: wait for it
            loss = _run_locked(directory, config)
    except Stopped as stopped:
        if multiprocessing.parent_process() is None:
            raise
        end_worker(stopped.code - 128)
    except OSError as error:  # its directory can't be written
        fail(directory, _command(), explain(error))
        loss = math.nan
    stay_if_leaving()
    return loss


def _refuse_unfit(config: Config) -> None:
    """Raises ValueError for a config that is none for a job."""
    if config.trainer.devices > 1:
        raise ValueError("trainer.devices must be 1 in a sweep: jobs run side by side, each on one device.")
    targets = {each["_target_"] for each in (*config.callbacks.values(), *config.logger.values())}
    if config.doctor.stop_on_critical and not targets >= {DOCTOR, LOSS_RECORDER}:
        raise ValueError("doctor.stop_on_critical needs callbacks=diagnostics and logger=tensorboard or jsonl.")


def _run_locked(directory: Path, config: Config) -> float:
    failure = directory / FAILURE
    if (directory / METRICS).exists():
        return _val_loss(directory)
    if read_failure(directory).get("command") == _command():
        return math.nan
    failure.unlink(missing_ok=True)
    try:
        from makemore_pl.train import run

        if leaving.is_set():
            raise Stopped("")
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
    """The checkpoint to resume from; None if there is none that can be used."""
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
    """The reason of a failure in one line; with the type of the error unless it is a user's mistake."""
    text = explain(error) if is_mistake(error) else f"{type(error).__name__}: {error}".removesuffix(": ")
    return text.strip().partition("\n")[0]


def _command() -> str:
    return os.environ.get(COMMAND, "")


def _val_loss(directory: Path) -> float:
    return float(_read_metrics(directory)["val/loss"])


def _read_metrics(directory: Path) -> dict[str, Any]:
    path = directory / METRICS
    try:
        metrics = read_json(path)
    except (OSError, ValueError):
        metrics = {}
    if not isinstance(metrics.get("val/loss"), float):
        raise ValueError(f"{path} is damaged. Remove it, and the same command runs this job again.")
    return metrics


def read_failure(directory: Path) -> dict[str, str]:
    """The content of failure.json, which `fail` has written; empty if there is none that can be read."""
    try:
        return read_json(directory / FAILURE)
    except (OSError, ValueError):  # another command may have removed it, to run the job again
        return {}


def fail(directory: Path, command: str, reason: str, details: str = "") -> None:
    """Write failure.json, or print the reason if that can't be written."""
    content = {"reason": reason.partition("\n")[0], "command": command, "traceback": details}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / FAILURE, json.dumps(content, indent=2))
    except OSError:
        with suppress(OSError):
            print(f"{directory.name} failed: {content['reason']}", file=sys.stderr, flush=True)


def refuse_other_run(directory: Path, config: Config) -> None:
    """Raises ValueError if the directory has a run with another config, or a finished run on other words."""
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


@lru_cache  # all jobs of a sweep ask for the same words
def _words(source: str, path: str, changed: int) -> str:
    from makemore_pl.words import fingerprint, load_words  # imported here to keep --help fast

    return fingerprint(load_words(DataConfig(source=source, path=path)))
