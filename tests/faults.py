"""What can happen to a job, as a callback that tests put into a sweep by its dotted name."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Fault(Callback):
    """Does something at the first stride that starts at or after `step`. With `how=env` the environment says what.

    The environment variable FAULT is like "seed=2:wait seed=3:wait". `wait` is for a file `go` in the sweep directory.
    `kill` waits for the job `beside`, which at its first try waits to be killed with it.
    """

    watched_steps_suffice = True

    def __init__(self, how: str, step: int) -> None:
        self.how = how
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step < self.step:
            return
        job = Path(trainer.default_root_dir)
        how = self.how
        if how == "env":
            how = dict(each.split(":") for each in os.environ.get("FAULT", "").split()).get(job.name, "none")
        if how == "exit":
            sys.exit(3)
        if how == "memory":
            raise MemoryError
        if how == "value":
            raise ValueError("the value is wrong")
        if how == "not_finite":
            pl_module.get_parameter("model.embedding.weight").data.mul_(float("inf"))
        if how == "wait":
            while not (job.parent / "go").exists():
                time.sleep(0.05)
        if how == "beside" and not (job / "seen").exists():
            (job / "seen").touch()
            time.sleep(100)
        if how == "kill":
            while not (job.parent / "how=beside" / "seen").exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
