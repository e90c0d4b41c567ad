"""Runs this project as scripts/train.py does, and times it by a callback."""

import logging
import time
import warnings
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from benchmarks.splits import Tick
from makemore_pl.config import Config, resolve
from makemore_pl.module import MakemoreModule
from makemore_pl.stride.unwatched_steps import Unwatched
from makemore_pl.train import build

CONF = Path(__file__).parents[1] / "conf"


class StrideClock(Callback):
    """Calls the clock after every stride, adds up the time of the unwatched steps, and ends the run.

    Args:
        warmup: the first steps, which are not added up.
        steps: the run ends after these steps, even if max_steps is larger.
    """

    def __init__(self, warmup: int, steps: int, tick: Tick) -> None:
        self.warmup = warmup
        self.steps = steps
        self.tick = tick
        self.counted = 0
        self.seconds = self.cpu_seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, MakemoreModule)
        # here and not in on_train_start, because the module makes `unwatched` after the callbacks there
        if isinstance(pl_module.unwatched, Unwatched):
            pl_module.unwatched = self._timed(pl_module.unwatched)

    def _timed(self, unwatched: Unwatched) -> Any:
        def run(x: Tensor, y: Tensor, lrs: list[float], first: int) -> Tensor:
            started = time.perf_counter(), time.process_time()
            losses = unwatched(x, y, lrs, first)
            if first >= self.warmup:
                self.seconds += time.perf_counter() - started[0]
                self.cpu_seconds += time.process_time() - started[1]
                self.counted += len(lrs)
            return losses

        return run

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.tick(trainer.global_step)
        trainer.should_stop = trainer.global_step >= self.steps


def watch_every(overrides: list[str]) -> int:
    return _configure(overrides).trainer.watch_every


def fit(overrides: list[str], steps: int, warmup: int, tick: Tick) -> dict[str, float]:
    """Begin the run of 200,000 steps and end it after `steps`; returns the µs of an unwatched step.

    As with scripts/train.py, there are logger, progress bar, validation and checkpoints every 10,000 steps.

    Args:
        overrides: for the config, including run_dir.
        warmup: the first steps, which are not counted.
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
        "unwatched_us": clock.seconds / clock.counted * 1e6,
        "cpu_unwatched_us": clock.cpu_seconds / clock.counted * 1e6,
    }


def _configure(overrides: list[str]) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("train", overrides))
