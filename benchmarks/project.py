"""Our own run, built as scripts/train.py builds it and timed from a callback."""

import logging
import time
import warnings
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, Trainer, seed_everything

from benchmarks.splits import Tick
from makemore_pl.config import Config, resolve
from makemore_pl.train import build

CONF = Path(__file__).parents[1] / "conf"


class StrideClock(Callback):
    """Ticks after every stride, adds up the time inside training_step, where the unwatched steps are, and ends the run.

    Args:
        warmup: steps that are not added up.
        steps: steps after which the run ends, whatever max_steps is.
    """

    def __init__(self, warmup: int, steps: int, tick: Tick) -> None:
        self.warmup = warmup
        self.steps = steps
        self.tick = tick
        self.seconds = self.cpu_seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.first = trainer.global_step
        self.started = time.perf_counter(), time.process_time()

    def on_before_zero_grad(self, trainer: Trainer, *_: Any) -> None:
        # the first hook after training_step
        self.ended = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.first >= self.warmup:
            self.seconds += self.ended[0] - self.started[0]
            self.cpu_seconds += self.ended[1] - self.started[1]
        self.tick(trainer.global_step)
        trainer.should_stop = trainer.global_step >= self.steps


def watch_every(overrides: list[str]) -> int:
    return _configure(overrides).trainer.watch_every


def fit(overrides: list[str], steps: int, warmup: int, tick: Tick) -> dict[str, float]:
    """Begin the run of 200,000 steps and end it after `steps`; returns the µs a step inside training_step.

    Everything is as scripts/train.py has it: logger, progress bar, validation and checkpoints every 10,000 steps.

    Args:
        overrides: of the config, run_dir among them.
        warmup: steps whose training_step is not counted.
    """
    config = _configure(overrides)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(config.seed % 2**32, verbose=False)
    trainer, module, datamodule = build(config)
    clock = StrideClock(warmup, steps, tick)
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=datamodule)
    return {
        "training_step_us": clock.seconds / (steps - warmup) * 1e6,
        "cpu_training_step_us": clock.cpu_seconds / (steps - warmup) * 1e6,
    }


def _configure(overrides: list[str]) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("train", overrides))
