"""How a run is executed: which steps are watched, and how the others run."""

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
"""Unwatched steps from which compiling (10 to 30 s) costs less than it saves (about 0.4 ms a step)."""

ACTING = (
    "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step",
)  # fmt: skip
"""Hooks of a callback that may act on every batch or optimizer step."""
LOOKING = (
    ModelCheckpoint,  # saves after validations; where it counts steps, see below
    LearningRateMonitor,  # logs the rate of the steps that loggers see
    Timer,  # compares clocks between batches
    ProgressBar,
    DeviceStatsMonitor,  # logs the device's counters at the steps that loggers see
)
"""Lightning's own callbacks that have such hooks and need to see no more than watched steps."""


def acts_on_every_step(callback: Callback) -> bool:
    """Whether it has a hook for batches or optimizer steps and does not say `watched_steps_suffice = True`."""
    if getattr(callback, "watched_steps_suffice", False):
        return False
    if isinstance(callback, ModelCheckpoint) and counts_steps(callback):
        return True
    return any(hook in vars(callback) or not _looks(type(callback), hook) for hook in ACTING)


def _looks(kind: type, hook: str) -> bool:
    """Whether a class has a hook from a callback of Lightning's that looks only, or has none."""
    definer = next((each for each in kind.__mro__ if hook in vars(each)), Callback)
    return definer is Callback or (definer.__module__.startswith("lightning.") and issubclass(definer, LOOKING))


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
    """Compile, record or eager, with one line in the log. Decided from the config and the presence of a compiler alone.

    Raises:
        ValueError: compile where there is no compiler, record on a CPU.
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
    engine = choose_engine(config.trainer, accelerator)
    examples = config.data.batch_size * 8 * (config.data.block_size + 2)  # contexts, targets and indices
    masks = config.data.batch_size * 4 * config.model.n_hidden * config.model.n_layers if config.model.dropout else 0
    most = steps_in_memory(examples + masks)
    length = compiled_call_length(config.trainer.watch_every, most) if engine != "eager" else most
    calls_in_slice = max(1, MOST_BYTES // (examples * length))
    one_call = recorded_scan if engine == "record" else compiled_scan
    return Engine(length, engine != "eager", config.trainer.engine == "auto", calls_in_slice, one_call)
