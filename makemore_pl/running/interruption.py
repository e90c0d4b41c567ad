"""On a signal a run ends between two strides and saves last.ckpt there."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from makemore_pl.command_line import SCRIPTS
from makemore_pl.config import Config
from makemore_pl.lightning_internals import end_after_batch
from makemore_pl.running.signals import again, handle
from makemore_pl.stored_files import read_archive
from makemore_pl.stride.finiteness import all_finite


class Interruption(Callback):
    """A context in which the first signal ends the run after its current stride, with any validation due, and saves it.

    A second signal ends the run at once. So does the first one if training has not begun, or if there are several
    processes, because these could not agree on a stride. In a worker of a sweep a second signal does nothing, because
    the sweep may have sent it too; the sweep's process ends its workers.
    """

    watched_steps_suffice = True

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.code: int | None = None
        """Exit status for the signal that came; None if none came."""
        self._training: Trainer | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        self._before = handle(self._stop)
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
        progress = trainer.fit_loop.epoch_progress.current
        at_its_end = progress.completed == progress.ready  # its last validation has saved it
        if isinstance(exception, SIGTERMException) and not at_its_end and all_finite(pl_module.parameters()):
            trainer.save_checkpoint(self.checkpoint)

    def _stop(self, number: int) -> None:
        again, self.code = self.code is not None, 128 + number
        if again and multiprocessing.parent_process() is not None:
            return
        if again or self._training is None:
            raise KeyboardInterrupt
        end_after_batch(self._training)


def how_to_go_on(config: Config, checkpoint: Path) -> str:
    """The sentence that says where a run has stopped, with the command that continues it from any directory."""
    if not checkpoint.is_file():
        return "stopped before there was anything to save; the same command starts again."
    try:
        step = read_archive(checkpoint)["global_step"]
    except (ValueError, KeyError, TypeError) as error:
        return f"stopped; {error}"
    places = {"hydra.run.dir": os.path.abspath(config.run_dir), "run_dir": "", "ckpt_path": os.path.abspath(checkpoint)}
    typed = sys.argv if HydraConfig.initialized() else [str(SCRIPTS / "train.py")]
    several = ", its last validation, for several processes save nothing at a signal" * (config.trainer.devices > 1)
    return f"stopped at step {step}{several}; go on with: {again(typed, places)}"
