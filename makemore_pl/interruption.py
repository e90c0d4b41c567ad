"""A run that Ctrl-C, SIGTERM or SIGHUP stops between two strides, with its last step saved."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from makemore_pl.lightning_internals import end_after_batch

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A signal has ended the run; the message says where, and how to go on.

    Args:
        code: the exit status, 128 and the signal's number.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Interruption(Callback):
    """While entered, the first signal lets a training end after its stride. A second one, and one before or after the
    training, ends the process at once.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """

    watched_steps_suffice = True

    def __init__(self) -> None:
        self.code: int | None = None
        """Exit status of the signal that came."""
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

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._training = trainer

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = None

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again = self.code is not None
        self.code = 128 + number
        if again or self._training is None:
            raise Stopped("stopped at once", self.code)
        end_after_batch(self._training)
