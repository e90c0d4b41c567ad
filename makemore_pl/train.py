"""build(config) and run(config): from a checked config to a trained network and its run directory."""

import json
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    OnExceptionCheckpoint,
    ProgressBar,
    ThroughputMonitor,
    Timer,
)
from omegaconf import OmegaConf
from rich.table import Table
from rich.text import Text

from makemore_pl.checkpoint import BestCheckpoint, LastCheckpoint, WholeFiles, check_resumable, usable_checkpoint
from makemore_pl.config import Config, TrainerConfig
from makemore_pl.data import NamesDataModule
from makemore_pl.diagnostics.dashboard import add_layout, log_hparams, start_session, url
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.evaluate import split_loss
from makemore_pl.files import remove_parts, write_atomically
from makemore_pl.interruption import Interruption, Stopped
from makemore_pl.module import MakemoreModule
from makemore_pl.output import show
from makemore_pl.progress import StepProgressBar
from makemore_pl.quoting import command, interpreter, override
from makemore_pl.stride.unwatched_steps import call_length
from makemore_pl.words import fingerprint

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]

GPU_PAYS = 50_000_000
"""Parameters times minibatch from which `auto` takes a GPU. Below it a step is a few small kernels, whose launches cost
more than their arithmetic; the lecture's networks are at 400,000 to 1,500,000. An estimate, not a measurement."""
COMPILE_PAYS = 40_000
"""Unwatched steps from which compiling (10 to 30 s) costs less than it saves (about 0.4 ms a step)."""

LOCK = "running.lock"
"""Held while a run writes into its directory; the kernel lets go of it when the process dies."""

ACTING = (
    "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step",
)  # fmt: skip
"""Hooks of a callback that may act on every batch or optimizer step."""
LOOKING = (
    ModelCheckpoint, EarlyStopping, LearningRateMonitor, Timer, ProgressBar, DeviceStatsMonitor, ModelSummary,
    ThroughputMonitor, OnExceptionCheckpoint,
)  # fmt: skip
"""Lightning's callbacks for which the watched steps are enough."""
ABSURD = 10
"""Times ln V: a validation loss beyond is finite, but a run that has diverged."""


def choose_accelerator(config: TrainerConfig, parameters: int, batch_size: int) -> str:
    """Cpu or gpu, with one line in the log.

    Raises:
        ValueError: gpu where there is none.
    """
    # not asked for where the CPU is wanted: asking initializes the driver
    there_is_one = config.accelerator != "cpu" and torch.cuda.is_available()
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


def acts_on_every_step(callback: Callback) -> bool:
    """Whether it has a hook for batches or optimizer steps and does not say `watched_steps_suffice = True`."""
    if getattr(callback, "watched_steps_suffice", False):
        return False
    for hook in ACTING:
        definer = next(each for each in type(callback).__mro__ if hook in vars(each))
        if hook in vars(callback) or (definer is not Callback and not issubclass(definer, LOOKING)):
            return True
    return False


def choose_watch_every(config: TrainerConfig, callbacks: Iterable[Callback] = ()) -> int:
    """1, with one line in the log, where an unwatched step could not be the same as a watched one."""
    reasons = [f"the callback {type(each).__name__}" for each in callbacks if acts_on_every_step(each)]
    if config.devices > 1:
        reasons.append(f"trainer.devices={config.devices}")
    if config.precision != "32-true":
        reasons.append(f"trainer.precision={config.precision}")
    if reasons and config.watch_every > 1:
        log.warning("Every step is watched, as in plain Lightning, because of %s.", " and ".join(reasons))
        return 1
    return config.watch_every


def choose_engine(config: TrainerConfig, accelerator: str) -> str:
    """Compile or eager, with one line in the log. Decided from the config and the presence of a compiler alone."""
    unwatched = config.max_steps - config.max_steps // config.watch_every
    if config.watch_every == 1 or config.engine == "eager":
        return "eager"
    if config.engine == "auto" and (accelerator == "gpu" or unwatched < COMPILE_PAYS):
        log.info("Engine eager: %s.", "on a GPU" if accelerator == "gpu" else f"{unwatched} steps don't earn compiling")
        return "eager"
    if not shutil.which(os.environ.get("CXX", "g++")):
        log.warning("There is no C++ compiler (CXX or g++): unwatched steps run in the slower engine=eager.")
        return "eager"
    return "compile"


def build(config: Config) -> tuple[Trainer, MakemoreModule, NamesDataModule]:
    """Everything a run needs, from one generator and in the order of the lecture's random numbers."""
    run_dir = Path(config.run_dir)
    users_callbacks = _instantiate(config.callbacks)
    watch_every = choose_watch_every(config.trainer, users_callbacks)
    trainer_config = replace(config.trainer, watch_every=watch_every)
    generator = torch.Generator().manual_seed(config.seed)
    datamodule = NamesDataModule(config.data, trainer_config, generator)
    module = MakemoreModule(
        datamodule.vocabulary.characters, config.data.block_size, config.model, config.optim, generator
    )
    parameters = sum(parameter.numel() for parameter in module.parameters())
    accelerator = choose_accelerator(trainer_config, parameters, config.data.batch_size)
    if choose_engine(trainer_config, accelerator) == "compile":
        module.compiled_length = call_length(watch_every)
    callbacks = [
        *([StepProgressBar()] if trainer_config.enable_progress_bar else []),
        *users_callbacks,
        # after each validation, also in the middle of Lightning's one epoch; two, because `save_last` follows the best;
        # at the end, so that what a signal leaves behind holds the state of all the others
        BestCheckpoint(run_dir / "checkpoints"),
        LastCheckpoint(run_dir / "checkpoints"),
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
        # read by Lightning's callbacks, as EarlyStopping; when to validate is decided by NamesDataModule
        val_check_interval=trainer_config.val_check_interval,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=trainer_config.enable_progress_bar,
        default_root_dir=run_dir,
        callbacks=callbacks,
        plugins=[WholeFiles()],
        logger=_instantiate(config.logger) or False,
    )
    return trainer, module, datamodule


def _instantiate(nodes: dict[str, Any]) -> list[Any]:
    # the only `_target_`s of the project: callbacks and loggers are open sets
    return [instantiate(node, _convert_="all") for node in nodes.values()]


def run(config: Config, announce: bool = True) -> dict[str, Any]:
    """Train, evaluate on the whole splits, write metrics.json last; returns its content.

    Args:
        announce: print the table of final losses.

    Raises:
        ValueError: for a user's mistake. FloatingPointError: where training stops being finite.
        Stopped: by a signal; last.ckpt is then of the step where the run stood.
    """
    run_dir = Path(config.run_dir)
    refuse_finished(run_dir, resuming=config.ckpt_path is not None)
    for sentence in config.without_effect():
        log.warning(sentence)
    _quieten()
    torch.set_num_threads(config.trainer.threads)
    torch.set_float32_matmul_precision(config.trainer.matmul_precision)
    seed_everything(config.seed % 2**32, verbose=False)
    if config.ckpt_path:
        config = replace(config, ckpt_path=str(usable_checkpoint(Path(config.ckpt_path))))
    interruption = Interruption()
    with _users_settings(), interruption:
        trainer, module, datamodule = build(config)
        first = check_resumable(Path(config.ckpt_path), config, datamodule) if config.ckpt_path else 0
        trainer.callbacks.append(interruption)  # type: ignore[attr-defined]
        try:
            with _alone(run_dir) if trainer.is_global_zero else nullcontext():
                refuse_finished(run_dir, resuming=config.ckpt_path is not None)
                return _train(config, trainer, module, datamodule, first, announce)
        except (KeyboardInterrupt, SystemExit) as ended:
            # Lightning turns Ctrl-C into sys.exit
            if interruption.code is None:
                raise
            raise Stopped(how_to_go_on(run_dir, trainer.global_step), interruption.code) from ended


def _train(
    config: Config, trainer: Trainer, module: MakemoreModule, datamodule: NamesDataModule, first: int, announce: bool
) -> dict[str, Any]:
    run_dir = Path(config.run_dir)
    remove_parts(run_dir)
    write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    (run_dir / "metrics.json").unlink(missing_ok=True)  # it marks a finished run
    start_session(trainer, first)
    add_layout(trainer)
    finals = FinalLosses(config)
    trainer.callbacks.append(finals)  # type: ignore[attr-defined]
    module.started = time.perf_counter()
    trainer.fit(module, datamodule=datamodule, ckpt_path=config.ckpt_path, weights_only=True)
    losses, seconds = finals.losses, finals.seconds
    uniform = math.log(len(datamodule.vocabulary))
    metrics: dict[str, Any] = {
        "experiment": config.experiment,
        "seed": config.seed,
        "initial_loss": module.initial_loss,
        **{f"{split}/loss": loss for split, loss in losses.items()},
        "val/perplexity": math.exp(losses["val"]) if losses["val"] < 700 else None,  # beyond, no float holds it
        "steps": trainer.global_step,
        "stopped_by": stopped_by(trainer),
        "seconds": round(seconds, 3),
        "steps_per_second": round(trainer.global_step / seconds, 1),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "words_sha256": fingerprint(datamodule.words),
        "uniform_loss": uniform,
        "commit": _commit(),
        "versions": {package: version(package) for package in ("makemore_pl", "torch", "lightning", "hydra-core")},
    }
    if trainer.is_global_zero:
        if losses["val"] > ABSURD * uniform:
            log.warning(
                "The run has diverged: its validation loss is %.4g, and guessing has ln V = %.4g. "
                "Try a smaller optim.lr.", losses["val"], uniform,
            )  # fmt: skip
        write_atomically(run_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        if announce:
            tags = {tag for logger in trainer.loggers if isinstance(logger, JSONLinesLogger) for tag in logger.tags}
            _print_table(metrics, run_dir, url(tags))
    return metrics


class FinalLosses(Callback):
    """Whole-split losses, on the device that trained and before the loggers are closed."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.losses: dict[str, float] = {}
        self.seconds = math.nan
        """Of training, in all legs of a resumed run."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MakemoreModule)
        self.seconds = pl_module.seconds()
        model = pl_module.model.to(trainer.strategy.root_device)
        examples = trainer.datamodule.examples  # type: ignore[attr-defined]
        self.losses = {split: split_loss(model, x, y) for split, (x, y) in examples.items()}
        finals = {f"{split}/loss": loss for split, loss in self.losses.items()}
        log_hparams(trainer, {**asdict(self.config), "callbacks": None, "logger": None}, finals)


def stopped_by(trainer: Trainer) -> str | None:
    """The class of the callback that ended training before max_steps; None for a whole run."""
    if trainer.global_step >= trainer.max_steps:
        return None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        stopped = isinstance(callback, EarlyStopping) and callback.stopping_reason.value
        if stopped or (isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0):
            return type(callback).__name__
    return "a callback"


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    # a singleton, so that a sweep's job, which holds it already, can take it once more
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / LOCK, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"Another process is training in {run_dir}: choose another hydra.run.dir.") from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            (run_dir / LOCK).unlink(missing_ok=True)
        lock.release()


@contextmanager
def _users_settings() -> Iterator[None]:
    """What Lightning refuses, and what the disk does, as a ValueError of one sentence."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RuntimeError as error:
        frames = traceback.extract_tb(error.__traceback__)
        # raised by Lightning itself, and not by torch below it: a setting that does not fit
        if not frames or "lightning" not in Path(frames[-1].filename).parts:
            raise
        raise ValueError(" ".join(str(error).split())) from error
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f": {error.filename}" if error.filename else ""
        raise ValueError(f"{error.strerror}{place}.") from error


def how_to_go_on(run_dir: Path, step: int) -> str:
    """Where a run has stopped, and the command that goes on from there."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return "stopped before there was anything to save; the same command starts again."
    ours = ("ckpt_path=", "hydra.run.dir=", "run_dir=")
    typed = sys.argv[1:] if Path(sys.argv[0]).name == "train.py" else []
    kept = [argument for argument in typed if not argument.lstrip("+").startswith(ours)]
    again = command("train.py", *kept, overrides={"hydra.run.dir": run_dir, "ckpt_path": last})
    return f"stopped at step {step}; go on with: {again}"


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
        raise ValueError(
            f"{run_dir} already holds a finished run: choose another hydra.run.dir, or resume it with "
            f"{override('ckpt_path', run_dir / 'checkpoints' / 'last.ckpt')}"
        )


def _quieten() -> None:
    # Lightning's banners, and advice that is wrong for a loader that yields strides
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # resuming into the same directory, or from another one, is what was asked for
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    # as of a checkpoint from before a callback was renamed or left out: they hold nothing that training needs
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")


def _print_table(metrics: dict[str, Any], run_dir: Path, dashboard: str) -> None:
    table = Table(title=Text(f"{metrics['experiment']}: losses in nats, whole splits, eval mode"))
    columns = {
        "train": "train/loss",
        "val": "val/loss",
        "test": "test/loss",
        "val perplexity": "val/perplexity",
        "initial": "initial_loss",
        "uniform, ln V": "uniform_loss",
    }
    for column in columns:
        table.add_column(column, justify="right")
    table.add_row(*("-" if metrics[key] is None else f"{metrics[key]:.4f}" for key in columns.values()))
    stopped = f", stopped by {metrics['stopped_by']}" if metrics["stopped_by"] else ""
    show(
        table,
        f"{metrics['steps']} steps in {metrics['seconds']:.1f} s{stopped}",
        f"run directory  {run_dir}",
        f"look at it     {interpreter()} -m tensorboard.main --logdir {shlex.quote(str(run_dir))}",
        f"               {dashboard}",
        f"as a page      {command('report.py', run_dir)}",
    )
