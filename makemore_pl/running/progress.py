"""The progress bar: one line with optimizer steps, losses, pace and time left, cut to the width of the terminal."""

import logging
import math
import time
from collections import deque
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from makemore_pl.module import MakemoreModule

WINDOW = 30
"""The pace is measured over this many watched steps."""
SHORTEST = 0.5
"""The pace is shown after this many seconds; before that it would be too inexact."""


def line(width: int, step: int, steps: int, train: float, val: float, pace: float | None, busy: str = "") -> str:
    """The text of the bar, with the most important part first. Parts that do not fit into `width` columns are left out.

    Args:
        train, val: losses in nats, NaN if there is none yet.
        pace: steps a second; None if it is not known.
        busy: what the steps wait for; then pace and time left are not shown.
    """
    parts = [f"step {step:,}/{steps:,}"]
    parts += [busy] if busy else []
    parts += [f"{name} {_short(loss)}" for name, loss in (("train", train), ("val", val)) if not math.isnan(loss)]
    if pace and not busy:
        minutes, seconds = divmod(math.ceil((steps - step) / pace), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        parts += [f"{pace:,.0f} steps/s", *([f"{left} left"] if step < steps else [])]
    shown = parts[0]
    for part in parts[1:]:
        if len(shown) + 2 + len(part) > width:
            break
        shown += f"  {part}"
    return shown[:width]


def _short(loss: float) -> str:
    return f"{loss:.2f}" if loss < 1000 else f"{loss:.4g}"


class StepProgressBar(ProgressBar):
    """One line for the whole run. Lightning's own bars count batches, which are strides here.

    Log lines are printed above it.
    """

    watched_steps_suffice = True

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._enabled = True
        self._open = ExitStack()
        self._train = self._val = math.nan
        self._said = 0.0
        self._seen: deque[tuple[float, int]] = deque(maxlen=WINDOW)

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            bar_format="{desc}",
            dynamic_ncols=True,
            disable=None if self._enabled else True,  # None shows it on a terminal only
        )
        if not self._bar.disable:
            self._open.enter_context(logging_redirect_tqdm())
            log, waiting = logging.getLogger("makemore_pl.stride"), _Waiting(self)
            log.addHandler(waiting)
            self._open.callback(log.removeHandler, waiting)
            self._say()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._bar is not None and not self._bar.disable:
            self._train = pl_module.mean_loss if isinstance(pl_module, MakemoreModule) else math.nan
            self._bar.n = trainer.global_step
            self._seen.append((time.perf_counter(), trainer.global_step))
            self._say(hurry=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None and "val/loss" in trainer.callback_metrics:
            self._val = trainer.callback_metrics["val/loss"].item()
            self._say()

    def wait_for(self, what: str) -> None:
        """Show what the steps wait for, or with "" that they go on. The pace is measured anew."""
        self._seen.clear()
        self._say(busy=what)

    def _say(self, busy: str = "", hurry: bool = True) -> None:
        bar = self._bar
        if bar.disable or not (hurry or time.perf_counter() - self._said > 0.1):
            return
        self._said = time.perf_counter()
        pace = None
        if self._seen:
            (since, first), (now, last) = self._seen[0], self._seen[-1]
            pace = (last - first) / (now - since) if now - since > SHORTEST else None
        columns = bar.format_dict["ncols"] or 0
        width = (columns if columns > 0 else 80) - 1  # some terminals report 0
        bar.set_description_str(line(width, bar.n, bar.total, self._train, self._val, pace, busy))

    def _close(self) -> None:
        self._open.close()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._say()
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()


class _Waiting(logging.Handler):
    """Lets the bar show that steps are being compiled, during which no step is taken."""

    def __init__(self, bar: StepProgressBar) -> None:
        super().__init__(logging.INFO)
        self.bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        self.bar.wait_for("compiling" if record.getMessage().startswith("Compiling") else "")
