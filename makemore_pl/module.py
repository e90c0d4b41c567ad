"""MakemoreModule: the MLP as a LightningModule that takes one stride a batch."""

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
from makemore_pl.data import Vocabulary
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.model import MLP
from makemore_pl.stride.finiteness import all_finite, first_not_finite, first_not_finite_gradient
from makemore_pl.stride.unwatched_steps import Unwatched


def learning_rate(step: int, config: OptimConfig, max_steps: int) -> float:
    """The learning rate of a step, a pure function: a resumed run needs no scheduler state."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "step_decay":
        return config.lr * (config.decay_factor if step >= round(config.decay_at * max_steps) else 1.0)
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, max_steps - 1 - config.warmup_steps)
        fraction = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return config.lr * (config.decay_factor + (1 - config.decay_factor) * fraction)
    return config.lr


class MakemoreModule(LightningModule):
    """Trains an MLP; a batch is a stride of minibatches, of which Lightning sees the last one.

    Args:
        vocabulary: the characters, sorted, without the end mark.
        block_size: characters of context.
        model, optim: their configs, or the same as plain dicts (as checkpoints have them).
        generator: draws the parameters; a fresh one where they are loaded anyway.
        compiled_length: number of unwatched steps that run as one compiled call; 0: one by one.
    """

    def __init__(
        self,
        vocabulary: str,
        block_size: int,
        model: ModelConfig | dict[str, Any],
        optim: OptimConfig | dict[str, Any],
        generator: torch.Generator | None = None,
        compiled_length: int = 0,
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
        self.compiled_length = compiled_length
        self.initial_loss: float | None = None
        self.mean_loss = math.nan
        self.started = time.perf_counter()
        """When this leg of the run began."""
        self._seconds_before = 0.0
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_perplexity = Perplexity()

    def watched_step(self, batch: tuple[Tensor, Tensor]) -> int:
        """The step, counted from 0, that this batch ends with: the one that Lightning and callbacks see."""
        return int(self.trainer.global_step) + len(batch[1]) - 1

    def probe(self) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
        """The network, and the loss of such a network on the first 1,024 training examples."""
        x, y = (each[:1024].to(self.device) for each in self.trainer.datamodule.examples["train"])  # type: ignore[attr-defined]
        return self.model, lambda network: cross_entropy(network(x), y)

    def seconds(self) -> float:
        """Of training so far, in all legs of a resumed run."""
        return self._seconds_before + time.perf_counter() - self.started

    def forward(self, x: Tensor) -> Tensor:
        """(B, block_size) -> (B, vocab_size) logits."""
        logits: Tensor = self.model(x)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optim = self.optim
        if optim.name == "sgd":
            return torch.optim.SGD(
                self.model.parameters(),
                lr=optim.lr,
                momentum=optim.momentum,
                nesterov=optim.nesterov,
                weight_decay=optim.weight_decay,
            )
        adam = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
        return adam(
            self.model.parameters(),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )

    def on_train_start(self) -> None:
        self.trainer.val_check_batch = float("inf")  # until the data module sets it for the first stride
        for logger in self.loggers:
            if isinstance(logger, JSONLinesLogger):
                logger.resume_at(self.trainer.global_step)
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        algorithm = self.trainer.gradient_clip_algorithm
        self.unwatched = Unwatched(
            self.model,
            optimizer,
            clip_value=self.trainer.gradient_clip_val,
            clip_algorithm=str(algorithm.value if algorithm else "norm"),
            compiled_length=self.compiled_length,
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Take the stride's unwatched steps; return the loss of its watched one.

        Args:
            batch: contexts (k, B, block_size) and targets (k, B).
        """
        x, y = batch
        first = self.trainer.global_step
        step = first + len(y) - 1
        losses = y.new_empty(0, dtype=torch.float32)
        if len(y) > 1:
            lrs = [learning_rate(each, self.optim, self.trainer.max_steps) for each in range(first, step)]
            losses = self.unwatched(x[:-1], y[:-1], lrs, first)
        # Lightning counts one optimizer step a batch; with these two lines it counts all of the stride's.
        loop = self.trainer.fit_loop.epoch_loop
        loop.automatic_optimization.optim_progress.optimizer.step.increment_by(len(y) - 1)
        loop._batches_that_stepped = step
        lr = learning_rate(step, self.optim, self.trainer.max_steps)
        self.unwatched.optimizer.param_groups[0]["lr"] = lr
        loss = cross_entropy(self(x[-1]), y[-1])
        mean = torch.cat([losses, loss.detach()[None].float()]).mean()
        watched, self.mean_loss = torch.stack([loss.detach().float(), mean]).tolist()
        if not math.isfinite(watched):
            found = first_not_finite(self.model, x[-1], y[-1]) or "the loss"  # other dropout may let it pass
            raise FloatingPointError(f"step {step}: {found} is not finite.")
        if step == 0:
            self.initial_loss = watched
        self.log("train/loss", loss, prog_bar=True, logger=False, batch_size=y.shape[1])
        self._emit({"train/loss": watched, "train/loss_mean": self.mean_loss, "lr": lr}, step)
        return loss

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
            "dropout_generators_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        checkpoint["seconds"] = self.seconds()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint["makemore_pl"]
        self.initial_loss = ours.get("initial_loss")
        self._seconds_before = checkpoint.get("seconds", 0.0)
        torch.set_rng_state(ours["dropout_generator"].cpu())
        states = ours.get("dropout_generators_cuda", [])
        if states and torch.cuda.is_available() and len(states) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in states])
