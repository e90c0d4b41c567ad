"""What a run ends with: its losses on whole splits, and what ended it."""

import logging
from dataclasses import asdict

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from makemore_pl.config import Config
from makemore_pl.diagnostics.dashboard import log_hparams
from makemore_pl.initialization import gain_of
from makemore_pl.losses import split_loss
from makemore_pl.module import MakemoreModule
from makemore_pl.running.hopeless import StopOnCritical

log = logging.getLogger(__name__)

ABSURD = 10
"""Times ln V: a validation loss beyond is finite, but a run that has diverged."""


class FinalLosses(Callback):
    """Whole-split losses, measured where the network was trained, and logged before the loggers are closed."""

    watched_steps_suffice = True

    def __init__(self, config: Config) -> None:
        self.config = config
        self.losses: dict[str, float] = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MakemoreModule)
        pl_module.stop_clock()
        model = pl_module.model.to(trainer.strategy.root_device)
        examples = trainer.datamodule.examples  # type: ignore[attr-defined]
        self.losses = {split: split_loss(model, x, y) for split, (x, y) in examples.items()}
        finals = {f"{split}/loss": loss for split, loss in self.losses.items()}
        model_config = self.config.model
        hparams = {**asdict(self.config), "callbacks": None, "logger": None}
        hparams["model"]["gain"] = gain_of(model_config.init, model_config.gain, model_config.activation)
        log_hparams(trainer, hparams, finals)


def stopped_by(trainer: Trainer) -> str | None:
    """The callback that ended training before max_steps, the doctor with its finding; None for a whole run."""
    if trainer.global_step >= trainer.max_steps:
        return None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StopOnCritical) and callback.finding:
            return f"Doctor: {callback.finding}"
        stopped = isinstance(callback, EarlyStopping) and callback.stopping_reason.value
        if stopped or (isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0):
            return type(callback).__name__
    return "a callback"


def say_divergence(loss: float, uniform: float) -> None:
    """Warn of a validation loss that is finite and far worse than guessing, in nats."""
    if loss > ABSURD * uniform:
        log.warning(
            "The run has diverged: its validation loss is %.4g, and guessing has ln V = %.4g. Try a smaller optim.lr.",
            loss,
            uniform,
        )
