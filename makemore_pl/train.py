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
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.errors import InstantiationException
from hydra.utils import instantiate
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

from makemore_pl.accelerator import choose_accelerator
from makemore_pl.announcement import say_end, say_start
from makemore_pl.checkpoint import BestCheckpoint, LastCheckpoint, WholeFiles, check_resumable, usable_checkpoint
from makemore_pl.command_line import command, near, typed
from makemore_pl.config import Config, TrainerConfig
from makemore_pl.data import VALIDATION_BATCH, NamesDataModule
from makemore_pl.diagnostics import Doctor
from makemore_pl.diagnostics.dashboard import add_layout, log_hparams, start_session
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.evaluate import split_loss
from makemore_pl.files import remove_parts, write_atomically
from makemore_pl.initialization import gain_of
from makemore_pl.interruption import Interruption, Stopped
from makemore_pl.lightning_internals import without_cuda
from makemore_pl.memory import refuse_beyond_memory
from makemore_pl.module import MakemoreModule
from makemore_pl.progress import StepProgressBar
from makemore_pl.settings_without_effect import settings_without_effect
from makemore_pl.stride.unwatched_steps import MOST_BYTES, Engine, compiled_call_length, steps_in_memory
from makemore_pl.words import fingerprint

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]

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
        logger=_instantiate("logger", config.logger, "log_metrics") or False,
    )
    return trainer, module, datamodule


def _refuse_large_batches(config: Config) -> None:
    """By what a layer takes before and after its activation; a validation keeps no layers but the one it is at."""
    data, model = config.data, config.model
    context = 8 * data.block_size + 4 * data.block_size * model.n_embd
    remedy = "use a smaller data.batch_size, or a smaller network"
    refuse_beyond_memory(data.batch_size * (context + 8 * model.n_hidden * model.n_layers), "One minibatch", remedy)
    refuse_beyond_memory(VALIDATION_BATCH * (context + 8 * model.n_hidden), "Validation", "use a smaller network")


def _instantiate(group: str, nodes: dict[str, Any], method: str) -> list[Any]:
    # the only `_target_`s of the project: callbacks and loggers are open sets
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
            raise ValueError(f"{group}.{name}: {node['_target_']} is none of Lightning's, it has no {method}.")
    return found


def run(config: Config, announce: bool = True) -> dict[str, Any]:
    """Train, evaluate on the whole splits, write metrics.json last; returns its content.

    Args:
        announce: say at the start what is run, and at the end how it went; make the run's page.

    Raises:
        ValueError: for a user's mistake. FloatingPointError: where training stops being finite.
        Stopped: by a signal; last.ckpt is then of the step where the run stood.
    """
    run_dir = Path(config.run_dir)
    refuse_finished(run_dir, resuming=config.ckpt_path is not None)
    for sentence in settings_without_effect(config):
        log.warning(sentence)
    _quieten()
    torch.set_num_threads(config.trainer.threads)
    torch.set_float32_matmul_precision(config.trainer.matmul_precision)
    seed_everything(config.seed % 2**32, verbose=False)
    if config.ckpt_path:
        config = replace(config, ckpt_path=str(usable_checkpoint(Path(config.ckpt_path))))
    interruption = Interruption()
    with interruption:
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
    if announce and trainer.is_global_zero:
        parameters = sum(parameter.numel() for parameter in module.parameters())
        say_start(config, parameters, len(datamodule.words), first)
    finals = FinalLosses(config)
    trainer.callbacks.append(finals)  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Doctor):
            callback.announce = announce
    module.started = time.perf_counter()
    with without_cuda() if trainer.strategy.root_device.type == "cpu" else nullcontext():
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
        "versions": {package: _version(package) for package in ("makemore_pl", "torch", "lightning", "hydra-core")},
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
            say_end(config, metrics, tags)
    return metrics


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # this one, where PYTHONPATH alone makes it importable
        return None


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
        model_config = self.config.model
        hparams = {**asdict(self.config), "callbacks": None, "logger": None}
        hparams["model"]["gain"] = gain_of(model_config.init, model_config.gain, model_config.activation)
        log_hparams(trainer, hparams, finals)


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


def how_to_go_on(run_dir: Path, step: int) -> str:
    """Where a run has stopped, and the command that goes on from there."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return "stopped before there was anything to save; the same command starts again."
    ours = ("ckpt_path=", "hydra.run.dir=", "run_dir=")
    given = sys.argv[1:] if Path(sys.argv[0]).name == "train.py" else []
    kept = [argument for argument in given if not argument.lstrip("+").startswith(ours)]
    places = [f"hydra.run.dir={typed(near(run_dir))}", f"ckpt_path={typed(near(last))}"]
    return f"stopped at step {step}; go on with: {command('train.py', *kept, *places)}"


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
    # which device trains, and why, is said by choose_accelerator
    warnings.filterwarnings("ignore", message="GPU available but not used")
    # resuming into the same directory, or from another one, is what was asked for
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    # as of a checkpoint from before a callback was renamed or left out: they hold nothing that training needs
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
