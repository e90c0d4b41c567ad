"""MakemoreModule: the MLP as a LightningModule that takes one stride a batch."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.text import Perplexity

from makemore_pl.config import ModelConfig, OptimConfig
from makemore_pl.data import Minibatches, Vocabulary
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.lightning_internals import count_steps
from makemore_pl.model import MLP
from makemore_pl.stride.finiteness import all_finite, first_not_finite, first_not_finite_gradient
from makemore_pl.stride.optimizers import build_optimizer
from makemore_pl.stride.unwatched_steps import EAGER, Engine, Unwatched

log = logging.getLogger(__name__)

AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16}
"""dtype of the matrix products, by those values of trainer.precision with which there are unwatched steps."""


def learning_rate(step: int, config: OptimConfig, max_steps: int) -> float:
    """The learning rate of a step, a pure function: a resumed run needs no scheduler state."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    return SCHEDULES[config.schedule](step, config, max_steps)


def _constant(step: int, config: OptimConfig, max_steps: int) -> float:
    return config.lr


def _step_decay(step: int, config: OptimConfig, max_steps: int) -> float:
    return config.lr * (config.decay_factor if step >= round(config.decay_at * max_steps) else 1.0)


def _cosine(step: int, config: OptimConfig, max_steps: int) -> float:
    progress = (step - config.warmup_steps) / max(1, max_steps - 1 - config.warmup_steps)
    fraction = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.lr * (config.decay_factor + (1 - config.decay_factor) * fraction)


SCHEDULES = {"constant": _constant, "step_decay": _step_decay, "cosine": _cosine}
"""The learning rate after the warm-up. Their names are SCHEDULES of choices.py."""


class MakemoreModule(LightningModule):
    """Trains an MLP; a batch is a stride of minibatches, of which Lightning sees the last one.

    Args:
        vocabulary: the characters, sorted, without the end mark.
        block_size: characters of context.
        model, optim: their configs, or the same as plain dicts (as checkpoints have them).
        generator: draws the parameters; a fresh one where they are loaded anyway.
        engine: how unwatched steps run; None where every step is watched.
    """

    def __init__(
        self,
        vocabulary: str,
        block_size: int,
        model: ModelConfig | dict[str, Any],
        optim: OptimConfig | dict[str, Any],
        generator: torch.Generator | None = None,
        engine: Engine | None = EAGER,
    ) -> None:
        super().__init__()
        model = ModelConfig(**model) if isinstance(model, dict) else model
        self.optim = OptimConfig(**optim) if isinstance(optim, dict) else optim
        # plain values only: a checkpoint must load with weights_only
        hparams = {"vocabulary": vocabulary, "block_size": block_size, "model": asdict(model)}
        self.save_hyperparameters({**hparams, "optim": asdict(self.optim)}, logger=False)
        self.vocabulary = Vocabulary(vocabulary)
        self.block_size = block_size
        self.model = MLP(len(self.vocabulary), block_size, model, generator or torch.Generator())
        self.engine = engine
        self.initial_loss: float | None = None
        self.mean_loss = math.nan
        self.started = time.perf_counter()
        """When this leg of the run began."""
        self._seconds_before = 0.0
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_perplexity = Perplexity()

    def watched_step(self, batch: Minibatches) -> int:
        """The step, counted from 0, that this batch ends with: the one that Lightning and callbacks see."""
        return int(self.trainer.global_step) + len(batch) - 1

    def probe(self) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
        """The network, and the loss of such a network on the first 1,024 training examples."""
        x, y = (each[:1024].to(self.device) for each in self.trainer.datamodule.examples["train"])  # type: ignore[attr-defined]
        return self.model, lambda network: cross_entropy(network(x), y)

    def seconds(self) -> float:
        """Of training so far, in all legs of a resumed run."""
        return self._seconds_before + time.perf_counter() - self.started

    def configuration(self) -> dict[str, dict[str, Any]]:
        """The settings of this run, by section."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        sections = {"data": datamodule.config, "optim": self.optim, "trainer": datamodule.trainer_config}
        return {"model": self.hparams["model"], **{name: asdict(each) for name, each in sections.items()}}

    def forward(self, x: Tensor) -> Tensor:
        """(B, block_size) -> (B, vocab_size) logits."""
        logits: Tensor = self.model(x)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model.parameters(), self.optim)

    def on_train_start(self) -> None:
        self.trainer.val_check_batch = float("inf")  # until the data module sets it for the first stride
        for logger in self.loggers:
            if isinstance(logger, JSONLinesLogger):
                logger.resume_at(self.trainer.global_step)
        # an optimizer that unwatched steps don't know is refused here, unless every step is watched
        self.unwatched = None if self.engine is None else self._unwatched(self.engine)

    def _unwatched(self, engine: Engine) -> Unwatched:
        optimizer, algorithm = self.optimizers(use_pl_optimizer=False), self.trainer.gradient_clip_algorithm
        assert isinstance(optimizer, torch.optim.Optimizer)
        return Unwatched(
            self.model,
            optimizer,
            clip_value=self.trainer.gradient_clip_val,
            clip_algorithm=str(algorithm.value if algorithm else "norm"),
            engine=engine,
            autocast=AUTOCAST[str(self.trainer.precision)],
        )

    def training_step(self, batch: Minibatches, batch_idx: int) -> Tensor:
        """Take the stride's unwatched steps; return the loss of its watched one."""
        first = self.trainer.global_step
        step = first + len(batch) - 1
        losses = self._unwatched_steps(batch, first) if len(batch) > 1 else []
        count_steps(self.trainer, unwatched=len(batch) - 1)
        lr = learning_rate(step, self.optim, self.trainer.max_steps)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = lr
        x, y = batch.watched()
        loss = cross_entropy(self(x), y)
        mean = torch.cat([*losses, loss.detach()[None].float()]).mean()
        watched, self.mean_loss = torch.stack([loss.detach().float(), mean]).tolist()
        if not math.isfinite(watched):
            found = first_not_finite(self.model, x, y) or "the loss"  # other dropout may let it pass
            raise FloatingPointError(f"step {step}: {found} is not finite.")
        if step == 0:
            self.initial_loss = watched
        self.log("train/loss", loss, prog_bar=True, logger=False, batch_size=len(y))
        self._emit({"train/loss": watched, "train/loss_mean": self.mean_loss, "lr": lr}, step)
        return loss

    def _unwatched_steps(self, batch: Minibatches, first: int) -> list[Tensor]:
        assert self.unwatched is not None
        assert self.engine is not None
        losses: list[Tensor] = []
        for x, y in batch.unwatched(self.engine.call_length * self.engine.calls_in_slice):
            lrs = [learning_rate(first + i, self.optim, self.trainer.max_steps) for i in range(len(y))]
            losses.append(self.unwatched(x, y, lrs, first))
            first += len(y)
        return losses

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # a 16-bit scaler skips steps whose gradient overflowed: there it is no error
        if self.trainer.precision == "16-mixed":
            return
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if not all_finite(gradients):
            found = first_not_finite_gradient(self.model)
            raise FloatingPointError(f"step {self.trainer.global_step}: {found} is not finite.")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        # example by example: with this strategy torchmetrics 1.9 takes all weights for 1
        self.val_loss.update(cross_entropy(logits, y, reduction="none"))
        self.val_perplexity.update(logits.unsqueeze(1), y.unsqueeze(1))

    def on_validation_epoch_end(self) -> None:
        loss = self.val_loss.compute()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"step {self.trainer.global_step - 1}: the validation loss is not finite.")
        # tanh holds what an infinite parameter does to the loss
        for name, parameter in self.model.named_parameters():
            if not all_finite([parameter]):
                raise FloatingPointError(f"step {self.trainer.global_step - 1}: the parameter {name} is not finite.")
        metrics = {"val/loss": loss, "val/perplexity": self.val_perplexity.compute()}
        self.log_dict(metrics, logger=False, sync_dist=self.trainer.world_size > 1)
        self._emit({tag: value.item() for tag, value in metrics.items()}, self.trainer.global_step - 1)
        self.val_loss.reset()
        self.val_perplexity.reset()

    def _emit(self, metrics: dict[str, float], step: int) -> None:
        # not through self.log, which would add an `epoch` to every step
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["makemore_pl"] = {
            "initial_loss": self.initial_loss,
            "dropout_generator": torch.get_rng_state(),
            # asking would initialize CUDA for a run on the CPU
            "dropout_generator_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        checkpoint["seconds"] = self.seconds()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint["makemore_pl"]
        self.initial_loss = ours.get("initial_loss")
        self._seconds_before = checkpoint.get("seconds", 0.0)
        torch.set_rng_state(ours["dropout_generator"].cpu())
        state, device = ours.get("dropout_generator_cuda"), self.trainer.strategy.root_device
        if state is not None and device.type == "cuda":
            torch.cuda.set_rng_state(state.cpu(), device)
        elif self.hparams["model"]["dropout"] and (state is None) == (device.type == "cuda"):
            before = "CPU" if state is None else "GPU"
            log.warning("The run was on the %s before: dropout's masks now come from another generator.", before)
