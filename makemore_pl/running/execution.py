"""Chooses how a run is executed: which steps are watched, and how the other steps run."""

import logging
import os
import shutil
from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    Timer,
)

from makemore_pl.config import Config, TrainerConfig
from makemore_pl.lightning_internals import counts_steps
from makemore_pl.stride.compiling import compiled_scan
from makemore_pl.stride.recording import recorded_scan
from makemore_pl.stride.unwatched_steps import MOST_BYTES, Engine, compiled_call_length, steps_in_memory

log = logging.getLogger(__name__)

COMPILE_PAYS = 40_000
"""`auto` compiles runs with at least this many unwatched steps. Compiling takes 10 to 30 s and saves about 0.4 ms a
step."""

ACTING = (
    "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step",
)  # fmt: skip
"""Hooks by which a callback can change every batch or optimizer step."""
LOOKING = (
    ModelCheckpoint,  # saves after validations; if it counts steps instead, see below
    LearningRateMonitor,  # logs the learning rate at the steps that loggers see
    Timer,  # looks at the clock between batches
    ProgressBar,
    DeviceStatsMonitor,  # logs the device's counters at the steps that loggers see
)
"""Lightning's own callbacks that have such hooks, but need to see watched steps only."""


def acts_on_every_step(callback: Callback) -> bool:
    """Whether it may need to see every step: it has one of these hooks and not `watched_steps_suffice = True`."""
    if getattr(callback, "watched_steps_suffice", False):
        return False
    if isinstance(callback, ModelCheckpoint) and counts_steps(callback):
        return True
    return any(hook in vars(callback) or not _looks(type(callback), hook) for hook in ACTING)


def _looks(kind: type, hook: str) -> bool:
    """Whether a class inherits this hook from one of LOOKING, or has no such hook."""
    definer = next((each for each in kind.__mro__ if hook in vars(each)), Callback)
    return definer is Callback or (definer.__module__.startswith("lightning.") and issubclass(definer, LOOKING))


def choose_watch_every(config: TrainerConfig, callbacks: Iterable[Callback] = ()) -> int:
    """watch_every of the config, or 1 with a warning if unwatched steps would differ from watched ones."""
    reasons = [f"the callback {type(each).__name__}" for each in callbacks if acts_on_every_step(each)]
    if config.devices > 1:
        reasons.append(f"trainer.devices={config.devices}")
    if config.precision == "16-mixed":  # its gradient scaler skips steps
        reasons.append(f"trainer.precision={config.precision}")
    if reasons and config.watch_every > 1:
        log.warning("Every step is watched, as in plain Lightning, because of %s.", " and ".join(reasons))
        return 1
    return config.watch_every


def choose_engine(config: TrainerConfig, accelerator: str) -> str:
    """Returns "compile", "record" or "eager", with one line in the log, by the config and whether there is a compiler.

    Raises:
        ValueError: engine=compile is asked for, and there is no compiler; or engine=record, and there is no GPU.
    """
    unwatched = config.max_steps - config.max_steps // config.watch_every
    if config.watch_every == 1 or config.engine == "eager":
        return "eager"
    if config.engine == "record":
        if accelerator != "gpu":
            raise ValueError("trainer.engine=record needs a GPU, whose graphs it records: use trainer.engine=compile.")
        return "record"
    if config.engine == "auto" and (accelerator == "gpu" or unwatched < COMPILE_PAYS):
        why = (
            "on a GPU they run eagerly"
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
    """How unwatched steps run; None if every step is watched."""
    if config.trainer.watch_every == 1:
        return None
    engine = choose_engine(config.trainer, accelerator)
    examples = config.data.batch_size * 8 * (config.data.block_size + 2)  # bytes of contexts, targets and indices
    masks = config.data.batch_size * 4 * config.model.n_hidden * config.model.n_layers if config.model.dropout else 0
    most = steps_in_memory(examples + masks)
    length = compiled_call_length(config.trainer.watch_every, most) if engine != "eager" else most
    calls_in_slice = max(1, MOST_BYTES // (examples * length))
    one_call = recorded_scan if engine == "record" else compiled_scan
    return Engine(length, engine != "eager", config.trainer.engine == "auto", calls_in_slice, one_call)
