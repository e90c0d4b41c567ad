"""Ends jobs of a sweep that will not become good: doctor.stop_on_critical=true."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from makemore_pl.diagnostics import Doctor
from makemore_pl.diagnostics_file import read_diagnostics

LOSS = "train/loss_mean"


class StopOnCritical(Callback):
    """Stops a job of a sweep at a validation if the doctor has a critical finding that no other finding explains.

    A job in the best quarter by training loss goes on, and so does a job if no other job has reached its step. The
    losses of the other jobs are read from their diagnostics.jsonl.
    """

    def __init__(self) -> None:
        self.finding: str | None = None
        """The id of the finding that has stopped the job."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self.finding = None
        trainer.should_stop |= self.finding is not None  # it was killed before it was finished

    def state_dict(self) -> dict[str, Any]:
        return {"finding": self.finding}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.finding = state_dict["finding"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.global_step >= trainer.max_steps:
            return
        doctor = next(each for each in trainer.callbacks if isinstance(each, Doctor))  # type: ignore[attr-defined]
        roots = doctor.look(trainer, pl_module).roots
        critical = next((each.id for each in roots if each.severity == "critical"), None)
        if critical and not in_best_quarter(*_losses(Path(trainer.default_root_dir))):
            self.finding = critical
            trainer.should_stop = True


def in_best_quarter(own: Mapping[int, float], others: Iterable[Mapping[int, float]]) -> bool:
    """Whether this job's mean training loss over the last quarter of its steps is in the best quarter of all jobs.

    Only jobs that have reached the same step are compared.

    Args:
        own: step -> loss of this job, infinite if it was not finite.
        others: the same for each other job.
    """
    if not own:
        return True
    last = max(own)
    rivals = [_recent(each, last) for each in others if max(each, default=-1) >= last]
    better = sum(loss < _recent(own, last) for loss in rivals)
    return better < (len(rivals) + 1) / 4


def _recent(losses: Mapping[int, float], last: int) -> float:
    recent = [loss for step, loss in losses.items() if 0.75 * last <= step <= last]
    return sum(recent) / len(recent) if recent else math.inf


def _losses(job: Path) -> tuple[dict[int, float], list[dict[int, float]]]:
    """The losses of this job, and those of each other job."""
    others = [path for path in job.parent.glob("*/diagnostics.jsonl") if path.parent.name != job.name]
    return read_losses(job / "diagnostics.jsonl"), [read_losses(path) for path in others]


def read_losses(path: Path) -> dict[int, float]:
    """Step -> training loss, infinite if it was not finite; empty if the file is missing or damaged."""
    try:
        losses = read_diagnostics(path, (LOSS,)).values.get(LOSS, {})
    except (OSError, ValueError):  # a file that another job has damaged must not end this one
        return {}
    return {step: loss if math.isfinite(loss) else math.inf for step, loss in losses.items()}
