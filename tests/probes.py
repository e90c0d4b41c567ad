"""Callbacks that tests put into a run by their dotted name."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class HaltedError(Exception):
    """Stands for whatever ends a run in the middle."""


class Halt(Callback):
    """Ends the run when a stride that starts at or after `step` begins."""

    watched_steps_suffice = True

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step:
            raise HaltedError


class Signal(Callback):
    """Sends this process a signal, `times` over, when the stride that ends with `step` has been taken.

    Args:
        apart: seconds between them.
    """

    watched_steps_suffice = True

    def __init__(self, step: int, number: int, times: int = 1, apart: float = 0.0) -> None:
        self.step = step
        self.number = number
        self.times = times
        self.apart = apart

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step - 1 == self.step:
            for _again in range(self.times):
                os.kill(os.getpid(), self.number)
                time.sleep(self.apart)


class Poison(Callback):
    """Multiplies a parameter by infinity after the first watched step that is not before `step`."""

    watched_steps_suffice = True

    def __init__(self, step: int, parameter: str) -> None:
        self.step = step
        self.parameter = parameter

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > self.step:
            pl_module.get_parameter(self.parameter).data.mul_(float("inf"))


class Recorder(Callback):
    """What a callback sees, by true step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.rates: dict[int, float] = {}
        self.before_optimizer_step: list[int] = []
        self.after_batch: list[int] = []
        self.validated: list[int] = []

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self.before_optimizer_step.append(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step = trainer.global_step - 1
        self.after_batch.append(step)
        self.losses[step] = trainer.callback_metrics["train/loss"].item()
        self.rates[step] = trainer.optimizers[0].param_groups[0]["lr"]

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.validated.append(trainer.global_step - 1)


class LogOnTheWay(Callback):
    """Logs the true step through Lightning's own log()."""

    watched_steps_suffice = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.log("true_step", float(trainer.global_step - 1))


class ValidationLosses(Callback):
    """The validation losses, and how far last.ckpt has come when the next stride begins."""

    watched_steps_suffice = True

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}
        self.last_saved: dict[int, int] = {}

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.by_step[trainer.global_step - 1] = trainer.callback_metrics["val/loss"].item()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step - 1 in self.by_step:
            self._look(trainer)

    def on_fit_end(self, trainer: Trainer, *_: Any) -> None:
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        path = Path(trainer.checkpoint_callback.dirpath) / "last.ckpt"
        self.last_saved[trainer.global_step - 1] = torch.load(path, weights_only=True)["global_step"]


class Ranks(Callback):
    """What each process of several has: its own loss, and the next numbers of the generator that draws masks."""

    watched_steps_suffice = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        state = torch.get_rng_state()
        seen = {"loss": outputs["loss"].item(), "next": torch.rand(2).tolist()}
        torch.set_rng_state(state)
        with (Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(seen) + "\n")
