"""On Ctrl-C, SIGTERM and SIGHUP a run ends between two strides and saves last.ckpt there."""

import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from makemore_pl.command_line import SCRIPTS, typed
from makemore_pl.config import Config
from makemore_pl.lightning_internals import end_after_batch
from makemore_pl.stride.finiteness import all_finite

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """Raised when a signal has ended the run. The message says at which step, and how to go on.

    Args:
        code: the exit status, 128 plus the signal's number.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Interruption(Callback):
    """A context in which the first signal ends the run after its current stride, with any validation due, and saves it.

    A second signal ends the run at once. So does the first one if training has not begun, or if there are several
    processes, because these could not agree on a stride. A signal that was ignored before, as SIGHUP is under nohup, is
    still ignored.
    """

    watched_steps_suffice = True

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.code: int | None = None
        """Exit status for the signal that came; None if none came."""
        self._training: Trainer | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = trainer if trainer.world_size == 1 else None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the run, before other callbacks see the exception."""
        self._training = None
        if isinstance(exception, SIGTERMException) and all_finite(pl_module.parameters()):
            trainer.save_checkpoint(self.checkpoint)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again, self.code = self.code is not None, 128 + number
        if again or self._training is None:
            raise KeyboardInterrupt
        end_after_batch(self._training)


def how_to_go_on(config: Config, checkpoint: Path) -> str:
    """The sentence that says where a run has stopped, with the command that continues it from any directory."""
    if not checkpoint.is_file():
        return "stopped before there was anything to save; the same command starts again."
    try:
        step = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    except Exception as error:  # torch.load raises many types for damaged files
        return f"stopped; {checkpoint} can't be read ({type(error).__name__})."
    places = {"hydra.run.dir": config.run_dir, "ckpt_path": str(checkpoint)}
    if config.data.path:
        places["data.path"] = config.data.path
    kept = []
    if HydraConfig.initialized():
        given = HydraConfig.get().overrides
        known = {*places, "run_dir", "hydra.mode"}
        kept = [each for each in [*given.task, *given.hydra] if each.lstrip("+~").partition("=")[0] not in known]
    settings = [*kept, *(f"{key}={typed(os.path.abspath(path))}" for key, path in places.items())]
    return f"stopped at step {step}; go on with: {shlex.join([sys.executable, str(SCRIPTS / 'train.py'), *settings])}"
