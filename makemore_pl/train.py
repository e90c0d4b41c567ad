"""build(config) and run(config): from a checked config to a trained network and its run directory."""

import json
import logging
import math
import os
import shlex
import shutil
import subprocess
import time
import warnings
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from makemore_pl.announcement import say_end, say_start
from makemore_pl.checkpoint import check_resumable
from makemore_pl.command_line import near, typed
from makemore_pl.config import Config, TrainerConfig
from makemore_pl.data import NamesDataModule
from makemore_pl.diagnostics.dashboard import add_layout, log_hparams
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.evaluate import split_loss
from makemore_pl.files import write_atomically
from makemore_pl.initialization import gain_of
from makemore_pl.module import MakemoreModule
from makemore_pl.progress import StepProgressBar
from makemore_pl.settings_without_effect import settings_without_effect
from makemore_pl.stride.unwatched_steps import MOST_BYTES, Engine, compiled_call_length, steps_in_memory
from makemore_pl.words import fingerprint

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]

GPU_PAYS = 50_000_000
"""Parameters times minibatch from which `auto` takes a GPU. Below it a step is a few small kernels, whose launches cost
more than their arithmetic; the lecture's networks are at 400,000 to 1,500,000. An estimate, not a measurement."""
COMPILE_PAYS = 40_000
"""Unwatched steps from which compiling (10 to 30 s) costs less than it saves (about 0.4 ms a step)."""


CHECKPOINTING: dict[str, Any] = {"save_on_train_epoch_end": False, "enable_version_counter": False}


def choose_accelerator(config: TrainerConfig, parameters: int, batch_size: int) -> str:
    """Cpu or gpu, with one line in the log.

    Raises:
        ValueError: gpu where there is none.
    """
    there_is_one = torch.cuda.is_available()
    if config.accelerator == "gpu" and not there_is_one:
        raise ValueError("trainer.accelerator=gpu: torch finds no GPU here; use trainer=cpu or trainer=auto.")
    if config.accelerator != "auto":
        chosen, why = config.accelerator, "as configured"
    elif not there_is_one:
        chosen, why = "cpu", "there is no GPU"
    elif parameters * batch_size < GPU_PAYS:
        chosen, why = "cpu", "a network this small is faster there; trainer=gpu takes the GPU"
    else:
        chosen, why = "gpu", "the network is large enough to gain from it"
    log.info("Training on the %s: %s.", chosen.upper(), why)
    return chosen


def choose_watch_every(config: TrainerConfig) -> int:
    """1, with one line in the log, where an unwatched step could not be the same as a watched one."""
    reasons = []
    if config.devices > 1:
        reasons.append(f"trainer.devices={config.devices}")
    if config.precision == "16-mixed":  # its scaler skips steps
        reasons.append(f"trainer.precision={config.precision}")
    if reasons and config.watch_every > 1:
        log.warning("Every step is watched, as in plain Lightning, because of %s.", " and ".join(reasons))
        return 1
    return config.watch_every


def choose_engine(config: TrainerConfig, accelerator: str) -> str:
    """Compile or eager, with one line in the log. Decided from the config and the presence of a compiler alone.

    Raises:
        ValueError: compile where there is no compiler.
    """
    unwatched = config.max_steps - config.max_steps // config.watch_every
    if config.watch_every == 1 or config.engine == "eager":
        return "eager"
    if config.engine == "auto" and (accelerator == "gpu" or unwatched < COMPILE_PAYS):
        why = (
            "they run on a GPU"
            if accelerator == "gpu"
            else "for a run this short, compiling takes longer than it saves"
        )
        log.info("The steps are not compiled: %s.", why)
        return "eager"
    if not shutil.which(os.environ.get("CXX", "g++")):
        if config.engine == "compile":
            raise ValueError("trainer.engine=compile: there is no C++ compiler (CXX or g++); use trainer.engine=eager.")
        log.warning("There is no C++ compiler (CXX or g++): unwatched steps run in the slower engine=eager.")
        return "eager"
    return "compile"


def engine_of(config: Config, accelerator: str) -> Engine | None:
    """How unwatched steps run; None where every step is watched."""
    if config.trainer.watch_every == 1:
        return None
    compiled = choose_engine(config.trainer, accelerator) == "compile"
    examples = config.data.batch_size * 8 * (config.data.block_size + 2)  # contexts, targets and indices
    masks = config.data.batch_size * 4 * config.model.n_hidden * config.model.n_layers if config.model.dropout else 0
    most = steps_in_memory(examples + masks)
    length = compiled_call_length(config.trainer.watch_every, most) if compiled else most
    calls_in_slice = max(1, MOST_BYTES // (examples * length))
    return Engine(length, compiled, config.trainer.engine == "auto", calls_in_slice)


def build(config: Config) -> tuple[Trainer, MakemoreModule, NamesDataModule]:
    """Everything a run needs, from one generator and in the order of the lecture's random numbers."""
    run_dir = Path(config.run_dir)
    watch_every = choose_watch_every(config.trainer)
    trainer_config = replace(config.trainer, watch_every=watch_every)
    generator = torch.Generator().manual_seed(config.seed)
    datamodule = NamesDataModule(config.data, trainer_config, generator)
    module = MakemoreModule(
        datamodule.vocabulary.characters, config.data.block_size, config.model, config.optim, generator
    )
    parameters = sum(parameter.numel() for parameter in module.parameters())
    accelerator = choose_accelerator(trainer_config, parameters, config.data.batch_size)
    module.engine = engine_of(replace(config, trainer=trainer_config), accelerator)
    callbacks = [
        # after each validation, also in the middle of Lightning's one epoch; two, because `save_last` follows the best
        ModelCheckpoint(run_dir / "checkpoints", "best", monitor="val/loss", **CHECKPOINTING),
        ModelCheckpoint(run_dir / "checkpoints", "last", **CHECKPOINTING),
        *([StepProgressBar()] if trainer_config.enable_progress_bar else []),
        *_instantiate(config.callbacks),
    ]
    trainer = Trainer(
        accelerator=accelerator,
        devices=trainer_config.devices,
        precision=trainer_config.precision,  # type: ignore[arg-type]
        max_epochs=-1,
        max_steps=trainer_config.max_steps,
        gradient_clip_val=trainer_config.gradient_clip_val,
        gradient_clip_algorithm=trainer_config.gradient_clip_algorithm if trainer_config.gradient_clip_val else None,
        deterministic=trainer_config.deterministic,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=trainer_config.enable_progress_bar,
        default_root_dir=run_dir,
        callbacks=callbacks,
        logger=_instantiate(config.logger) or False,
    )
    return trainer, module, datamodule


def _instantiate(nodes: dict[str, Any]) -> list[Any]:
    # the only `_target_`s of the project: callbacks and loggers are open sets
    return [instantiate(node, _convert_="all") for node in nodes.values()]


def run(config: Config, announce: bool = True) -> dict[str, Any]:
    """Train, evaluate on the whole splits, write metrics.json last; returns its content.

    Args:
        announce: say at the start what is run, and at the end how it went; make the run's page.

    Raises:
        ValueError: for a user's mistake. FloatingPointError: where training stops being finite.
    """
    run_dir = Path(config.run_dir)
    refuse_finished(run_dir, resuming=config.ckpt_path is not None)
    for sentence in settings_without_effect(config):
        log.warning(sentence)
    _quieten()
    torch.set_num_threads(config.trainer.threads)
    seed_everything(config.seed % 2**32, verbose=False)
    trainer, module, datamodule = build(config)
    first = check_resumable(Path(config.ckpt_path), config, datamodule) if config.ckpt_path else 0
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    (run_dir / "metrics.json").unlink(missing_ok=True)  # it marks a finished run
    add_layout(trainer)
    if announce and trainer.is_global_zero:
        parameters = sum(parameter.numel() for parameter in module.parameters())
        say_start(config, parameters, len(datamodule.words), first)
    started = time.perf_counter()
    trainer.fit(module, datamodule=datamodule, ckpt_path=config.ckpt_path, weights_only=True)
    seconds = time.perf_counter() - started
    losses = {split: split_loss(module.model, x, y) for split, (x, y) in datamodule.examples.items()}
    metrics: dict[str, Any] = {
        "experiment": config.experiment,
        "seed": config.seed,
        "initial_loss": module.initial_loss,
        **{f"{split}/loss": loss for split, loss in losses.items()},
        "val/perplexity": math.exp(losses["val"]) if losses["val"] < 700 else None,  # beyond, no float holds it
        "steps": trainer.global_step,
        "seconds": round(seconds, 3),
        "steps_per_second": round((trainer.global_step - first) / seconds, 1),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "words_sha256": fingerprint(datamodule.words),
        "uniform_loss": math.log(len(datamodule.vocabulary)),
        "commit": _commit(),
        "versions": {package: _version(package) for package in ("makemore_pl", "torch", "lightning", "hydra-core")},
    }
    if trainer.is_global_zero:
        finals = {tag: metrics[tag] for tag in ("train/loss", "val/loss", "test/loss")}
        hparams = {**asdict(config), "callbacks": None, "logger": None}
        hparams["model"]["gain"] = gain_of(config.model.init, config.model.gain, config.model.activation)
        log_hparams(trainer, hparams, finals)
        write_atomically(run_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        if announce:
            tags = {tag for logger in trainer.loggers if isinstance(logger, JSONLinesLogger) for tag in logger.tags}
            say_end(config, metrics, tags)
    return metrics


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # this one, where PYTHONPATH alone makes it importable
        return None


@cache
def _commit() -> str | None:
    """Of this code, with `-dirty` where it was changed since; None outside of a git repository."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def refuse_finished(run_dir: Path, resuming: bool) -> None:
    """Raises ValueError for a directory that holds a finished run, unless resuming."""
    if (run_dir / "metrics.json").exists() and not resuming:
        last = near(run_dir / "checkpoints" / "last.ckpt")
        raise ValueError(
            f"{run_dir} already holds a finished run: choose another hydra.run.dir, or resume it with "
            f"{shlex.quote(f'ckpt_path={typed(last)}')}"
        )


def _quieten() -> None:
    # Lightning's banners, and advice that is wrong for a loader that yields strides
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # resuming into the same directory, or from another one, is what was asked for
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
