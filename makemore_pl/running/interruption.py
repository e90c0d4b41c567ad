"""A signal lets a run end between two strides, and its last checkpoint is of where it stands."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from makemore_pl.command_line import SCRIPTS
from makemore_pl.config import Config
from makemore_pl.lightning_internals import end_after_batch
from makemore_pl.running.signals import again, handle
from makemore_pl.stride.finiteness import all_finite


class Interruption(Callback):
    """While it is entered, the first signal lets the run end after its stride, validation included, and be saved.

    A second one ends the run at once, as does one before the first stride or with several processes, which could not
    agree on a stride. A worker of a sweep may get one from its sweep as well; it is the sweep's process that ends it.
    """

    watched_steps_suffice = True

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.code: int | None = None
        """Exit status of the signal that came."""
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
        """Save, before other callbacks see the exception and finish what they have begun."""
        self._training = None
        if isinstance(exception, SIGTERMException) and all_finite(pl_module.parameters()):
            trainer.save_checkpoint(self.checkpoint)

    def _stop(self, number: int) -> None:
        again, self.code = self.code is not None, 128 + number
        if again and multiprocessing.parent_process() is not None:
            return
        if again or self._training is None:
            raise KeyboardInterrupt
        end_after_batch(self._training)


def how_to_go_on(config: Config, checkpoint: Path) -> str:
    """Where a run has stopped, and the command that goes on from there, from whatever directory."""
    if not checkpoint.is_file():
        return "stopped before there was anything to save; the same command starts again."
    try:
        step = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    except Exception as error:  # torch.load raises what it stumbles over
        return f"stopped; {checkpoint} can't be read ({type(error).__name__})."
    places = {"hydra.run.dir": os.path.abspath(config.run_dir), "run_dir": "", "ckpt_path": os.path.abspath(checkpoint)}
    typed = sys.argv if HydraConfig.initialized() else [str(SCRIPTS / "train.py")]
    several = ", its last validation, for several processes save nothing at a signal" * (config.trainer.devices > 1)
    return f"stopped at step {step}{several}; go on with: {again(typed, places)}"
