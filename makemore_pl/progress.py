"""The progress bar: optimizer steps, their rate, and the loss."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepProgressBar(ProgressBar):
    """One line for the whole run. Lightning's own bars count batches, which are strides here."""

    watched_steps_suffice = True

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit=" steps",
            mininterval=0.2,
            dynamic_ncols=True,
            disable=None if self._enabled else True,  # None: only where a person sees it
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._bar is not None:
            tags = [tag for tag in ("train/loss", "val/loss") if tag in trainer.callback_metrics]
            self._bar.set_postfix_str(
                " ".join(f"{tag} {trainer.callback_metrics[tag].item():.4f}" for tag in tags), refresh=False
            )
            self._bar.update(trainer.global_step - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()
