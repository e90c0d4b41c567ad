"""build(config) makes the objects of a run from a checked config; run(config) trains and writes the run directory."""

import json
import logging
import math
import shlex
import subprocess
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from omegaconf import OmegaConf

from makemore_pl.checkpoint import KeptCheckpoint, WholeFiles, check_resumable, usable_checkpoint
from makemore_pl.command_line import near, typed
from makemore_pl.config import Config
from makemore_pl.config.memory import refuse_beyond_memory
from makemore_pl.config.settings_without_effect import settings_without_effect
from makemore_pl.data import VALIDATION_BATCH, NamesDataModule
from makemore_pl.diagnostics import Doctor
from makemore_pl.diagnostics.dashboard import add_layout, start_session
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.files import remove_parts, write_atomically
from makemore_pl.lightning_internals import without_cuda
from makemore_pl.module import MakemoreModule
from makemore_pl.running.accelerator import choose_accelerator
from makemore_pl.running.announcement import say_breakdown, say_end, say_start
from makemore_pl.running.ending import FinalLosses, say_divergence, stopped_by
from makemore_pl.running.execution import choose_watch_every, engine_of
from makemore_pl.running.interruption import Interruption, how_to_go_on
from makemore_pl.running.progress import StepProgressBar
from makemore_pl.running.run_lock import alone_in
from makemore_pl.running.signals import Stopped
from makemore_pl.words import fingerprint

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]


def build(config: Config) -> tuple[Trainer, MakemoreModule, NamesDataModule]:
    """Make everything that a run needs. One generator draws all, in the order of the lecture's random numbers."""
    run_dir = Path(config.run_dir)
    users_callbacks = _instantiate("callbacks", config.callbacks, "on_train_start")
    watch_every = choose_watch_every(config.trainer, users_callbacks)
    trainer_config = replace(config.trainer, watch_every=watch_every)
    generator = torch.Generator().manual_seed(config.seed)
    _refuse_large_batches(config)
    datamodule = NamesDataModule(config.data, trainer_config, generator)
    module = MakemoreModule(
        datamodule.vocabulary.characters, config.data.block_size, config.model, config.optim, generator
    )
    parameters = sum(parameter.numel() for parameter in module.parameters())
    accelerator = choose_accelerator(trainer_config, parameters, config.data.batch_size)
    module.engine = engine_of(replace(config, trainer=trainer_config), accelerator)
    callbacks = [
        *([StepProgressBar()] if trainer_config.enable_progress_bar else []),
        *users_callbacks,
        # Two callbacks, because `save_last` of a single one would save last.ckpt only when it saves a new best.ckpt.
        KeptCheckpoint(run_dir / "checkpoints", "best", monitor="val/loss"),
        KeptCheckpoint(run_dir / "checkpoints", "last"),
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
        # NamesDataModule decides when to validate; Lightning's callbacks, such as EarlyStopping, read this
        val_check_interval=trainer_config.val_check_interval,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=trainer_config.enable_progress_bar,
        default_root_dir=run_dir,
        callbacks=callbacks,
        plugins=[WholeFiles()],
        logger=_instantiate("logger", config.logger, "log_metrics") or False,
    )
    return trainer, module, datamodule


def _refuse_large_batches(config: Config) -> None:
    """Raises ValueError if a minibatch or a validation needs more memory than the machine has.

    Training keeps each layer's preactivations and activations; a validation keeps only those of the current layer.
    """
    data, model = config.data, config.model
    context = 8 * data.block_size + 4 * data.block_size * model.n_embd
    widest = "data.block_size" if context > 8 * model.n_hidden else "network"
    remedy = f"use a smaller {widest}"
    refuse_beyond_memory(
        data.batch_size * (context + 8 * model.n_hidden * model.n_layers),
        "One minibatch",
        f"{remedy}, or a smaller data.batch_size",
    )
    refuse_beyond_memory(VALIDATION_BATCH * (context + 8 * model.n_hidden), "Validation", remedy)


def _instantiate(group: str, nodes: dict[str, Any], method: str) -> list[Any]:
    # only callbacks and loggers have a `_target_`, because users can add any class of theirs
    found = []
    for name, node in nodes.items():
        try:
            found.append(instantiate(node, _convert_="all"))
        except InstantiationException as error:
            cause: BaseException = error
            while cause.__cause__:
                cause = cause.__cause__
            reason = f"{type(cause).__name__}: {cause}".partition("\n")[0]
            raise ValueError(f"{group}.{name}: {node['_target_']} can't be made. {reason}") from error
        if not hasattr(found[-1], method):
            raise ValueError(f"{group}.{name}: {node['_target_']} does not fit Lightning: it has no {method}.")
    return found


def run(config: Config, announce: bool = True) -> dict[str, Any]:
    """Train, evaluate on the whole splits, and write metrics.json as the last file; returns its content.

    Args:
        announce: whether to print at the start what is run and at the end how it went, to write the run's page, and to
            handle signals. A sweep sets it to false and handles signals itself.

    Raises:
        ValueError: for a user's mistake. FloatingPointError: where training stops being finite.
        Stopped: by a signal; last.ckpt is then of the step where it stood.
    """
    run_dir = Path(config.run_dir)
    refuse_finished(run_dir, resuming=config.ckpt_path is not None)
    for sentence in settings_without_effect(config):
        log.warning(sentence)
    _quieten()
    torch.set_num_threads(config.trainer.threads)
    torch.set_float32_matmul_precision(config.trainer.matmul_precision)
    seed_everything(config.seed % 2**32, verbose=False)
    last = run_dir / "checkpoints" / "last.ckpt"
    interruption = Interruption(last)
    with interruption:
        try:
            return _run(config, interruption, announce)
        except (KeyboardInterrupt, SystemExit) as ended:  # Lightning turns Ctrl-C into SystemExit
            if interruption.code is None:
                raise
            raise Stopped(how_to_go_on(config, last) if announce else "", interruption.code) from ended


def _run(config: Config, interruption: Interruption, announce: bool) -> dict[str, Any]:
    run_dir = Path(config.run_dir)
    if config.ckpt_path:
        config = replace(config, ckpt_path=str(usable_checkpoint(Path(config.ckpt_path))))
    trainer, module, datamodule = build(config)
    first = check_resumable(Path(config.ckpt_path), config, datamodule) if config.ckpt_path else 0
    finals = FinalLosses(config)
    announce &= trainer.is_global_zero
    doctor = next((callback for callback in trainer.callbacks if isinstance(callback, Doctor)), None)  # type: ignore[attr-defined]
    tells = announce and doctor is not None and doctor.announce
    if doctor:
        doctor.announce = False  # its verdict is printed below the table of losses instead
    # `interruption` comes first, so that it saves before other callbacks see the exception
    trainer.callbacks = [interruption, *trainer.callbacks, finals]  # type: ignore[attr-defined]
    with alone_in(run_dir) if trainer.is_global_zero else nullcontext():
        refuse_finished(run_dir, resuming=config.ckpt_path is not None)  # again: it may have been finished meanwhile
        if trainer.is_global_zero:
            remove_parts(run_dir)
            write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
            (run_dir / "metrics.json").unlink(missing_ok=True)  # it marks a finished run
            _record_command(run_dir)
        start_session(trainer, first)
        add_layout(trainer)
        if announce:
            parameters = sum(parameter.numel() for parameter in module.parameters())
            say_start(config, parameters, len(datamodule.words), first)
        try:
            _fit(trainer, module, datamodule, config.ckpt_path)
        except FloatingPointError:
            if doctor and tells:
                say_breakdown(config, doctor.diagnosis)
            raise
        metrics = _metrics(config, trainer, module, datamodule, finals.losses)
        if trainer.is_global_zero:
            if not (tells and doctor and any(finding.id == "diverged" for finding in doctor.findings)):
                say_divergence(metrics["val/loss"], metrics["uniform_loss"])
            write_atomically(run_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
            if announce:
                tags = {tag for logger in trainer.loggers if isinstance(logger, JSONLinesLogger) for tag in logger.tags}
                say_end(config, metrics, tags, doctor.diagnosis if doctor and tells else None)
        return metrics


def _fit(trainer: Trainer, module: MakemoreModule, datamodule: NamesDataModule, ckpt_path: str | None) -> None:
    try:
        with without_cuda() if trainer.strategy.root_device.type == "cpu" else nullcontext():
            trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        # Lightning checks the states of optimizer, loops and callbacks only when it restores them
        restoring = any("checkpoint_connector" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
        if module.began is not None or not restoring:
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{ckpt_path} can't be resumed from: {reason}") from error


def _metrics(
    config: Config, trainer: Trainer, module: MakemoreModule, datamodule: NamesDataModule, losses: dict[str, float]
) -> dict[str, Any]:
    return {
        "experiment": config.experiment,
        "seed": config.seed,
        "initial_loss": module.initial_loss,
        **{f"{split}/loss": loss for split, loss in losses.items()},
        "val/perplexity": math.exp(losses["val"]) if losses["val"] < 700 else None,  # exp(710) overflows a float
        "steps": trainer.global_step,
        "stopped_by": stopped_by(trainer),
        "seconds": round(module.seconds, 3),
        "steps_per_second": round(module.steps_per_second(), 1),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "words_sha256": fingerprint(datamodule.words),
        "uniform_loss": math.log(len(datamodule.vocabulary)),
        "commit": _commit(),
        "versions": {package: _version(package) for package in ("makemore_pl", "torch", "lightning", "hydra-core")},
    }


def _record_command(run_dir: Path) -> None:
    """Write what Hydra would have written into .hydra before it was known whether this run is refused."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.RUN:
        return
    (run_dir / ".hydra").mkdir(exist_ok=True)
    hydra = HydraConfig.get()
    for name, part in {"overrides": hydra.overrides.task, "hydra": OmegaConf.create({"hydra": hydra})}.items():
        write_atomically(run_dir / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(part))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # makemore_pl itself, if it is not installed but on PYTHONPATH
        return None


@cache
def _commit() -> str | None:
    """The commit of this code, with `-dirty` if files were changed since; None outside of a git repository."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def refuse_finished(run_dir: Path, resuming: bool) -> None:
    """Raises ValueError if the directory has a run, finished or interrupted, unless that is to be resumed."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if resuming:
        return
    resume = f"resume it with {shlex.quote(f'ckpt_path={typed(near(last))}')}"
    if (run_dir / "metrics.json").exists():
        raise ValueError(
            f"{run_dir} already holds a finished run: choose another hydra.run.dir, or, with a larger "
            f"trainer.max_steps, {resume}"
        )
    if last.exists():
        raise ValueError(f"{run_dir} holds an interrupted run: choose another hydra.run.dir, or {resume}")


def _quieten() -> None:
    # Lightning's banners, and advice that does not apply to a loader of strides
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # choose_accelerator says which device trains, and why
    warnings.filterwarnings("ignore", message="GPU available but not used")
    # the user has asked to resume into the same directory, or from another one
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    # comes up if a callback was renamed or left out since the checkpoint; training needs no state of such a callback
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
