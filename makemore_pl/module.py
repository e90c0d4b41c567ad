"""MakemoreModule: the MLP as a LightningModule whose batch is a stride, that is several optimizer steps."""

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
from makemore_pl.stride.finiteness import (
    all_finite,
    first_not_finite,
    first_not_finite_gradient,
    first_not_finite_parameter,
)
from makemore_pl.stride.optimizers import build_optimizer
from makemore_pl.stride.unwatched_steps import EAGER, Engine, Unwatched

log = logging.getLogger(__name__)

AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16}
"""trainer.precision -> dtype of the matrix products in unwatched steps. With 16-mixed there are no such steps."""


def learning_rate(step: int, config: OptimConfig, max_steps: int) -> float:
    """The learning rate of a step. It depends on the step alone, so a resumed run needs no scheduler state."""
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
"""optim.schedule -> learning rate after the warm-up. The names are also in SCHEDULE_NAMES of config/choices.py."""


class MakemoreModule(LightningModule):
    """Trains an MLP. A batch is a stride of minibatches; Lightning sees the step on the last one only.

    Args:
        vocabulary: the characters, sorted, without the end mark.
        block_size: characters of context.
        model, optim: their configs, or the same as dicts, as in checkpoints.
        generator: draws the parameters; None if they are loaded from a checkpoint later.
        engine: how unwatched steps run; None if every step is watched.
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
        # only dicts, numbers and strings, so that a checkpoint can be loaded with weights_only
        hparams = {"vocabulary": vocabulary, "block_size": block_size, "model": asdict(model)}
        self.save_hyperparameters({**hparams, "optim": asdict(self.optim)}, logger=False)
        self.vocabulary = Vocabulary(vocabulary)
        self.block_size = block_size
        self.model = MLP(len(self.vocabulary), block_size, model, generator or torch.Generator())
        self.engine = engine
        self.initial_loss: float | None = None
        self.mean_loss = math.nan
        self.began: float | None = None
        """Time at which this process began to train, in seconds of time.perf_counter; None before that."""
        self._ended: float | None = None
        self._earlier, self._untimed = 0.0, 0
        """Seconds that earlier processes trained; and their steps if the checkpoint does not tell the seconds."""
        self._written: dict[str, int] = {}
        """Path of each diagnostics.jsonl -> its size in bytes when the checkpoint was made."""
        self._has_own_masks = False
        """Whether this process has restored its own generator for the masks of dropout from the checkpoint."""
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_perplexity = Perplexity()

    @property
    def watch_every(self) -> int:
        return int(self.trainer.datamodule.trainer_config.watch_every)  # type: ignore[attr-defined]

    def watched_step(self, batch: Minibatches) -> int:
        """The last step of this batch, counted from 0. It is the one that Lightning and callbacks see."""
        return int(self.trainer.global_step) + len(batch) - 1

    def probe(self) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
        """The network, and a function from a network to its loss on the first 1,024 training examples."""
        x, y = (tensor[:1024].to(self.device) for tensor in self.trainer.datamodule.examples["train"])  # type: ignore[attr-defined]
        return self.model, lambda network: cross_entropy(network(x), y)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, including those before a run was resumed."""
        if self.began is None:
            return self._earlier
        return self._earlier + (self._ended or time.perf_counter()) - self.began

    def stop_clock(self) -> None:
        self._ended = time.perf_counter()

    def steps_per_second(self) -> float:
        return (int(self.trainer.global_step) - self._untimed) / max(self.seconds, 1e-9)

    def configuration(self) -> dict[str, dict[str, Any]]:
        """The settings of this run, by section."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        sections = {"data": datamodule.config, "optim": self.optim, "trainer": datamodule.trainer_config}
        return {"model": self.hparams["model"], **{name: asdict(section) for name, section in sections.items()}}

    def forward(self, x: Tensor) -> Tensor:
        """(B, block_size) -> (B, vocab_size) logits."""
        logits: Tensor = self.model(x)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model.parameters(), self.optim)

    def on_train_start(self) -> None:
        self.began = time.perf_counter()
        self._set_learning_rate(self.trainer.global_step)
        self.trainer.val_check_batch = float("inf")  # until the data module sets it for the first stride
        for logger in self.loggers:
            if isinstance(logger, JSONLinesLogger):
                logger.resume_at(self.trainer.global_step, self._written.get(str(logger.path.absolute())))
        if self.trainer.global_rank > 0 and not self._has_own_masks:
            # otherwise all processes would drop the same units
            torch.manual_seed(torch.initial_seed() + self.trainer.global_rank + self.trainer.global_step)
        # this raises for an optimizer that unwatched steps can't run
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
        lr = self._set_learning_rate(step)
        x, y = batch.watched()
        loss = cross_entropy(self(x), y)
        mean = torch.cat([*losses, loss.detach()[None].float()]).mean()
        seen = torch.stack([loss.detach(), mean.to(loss.dtype)])
        if self.trainer.world_size > 1:
            seen = self.trainer.strategy.reduce(seen, reduce_op="mean")  # each process has a share of the minibatch
        seen = seen.cpu()  # Lightning reads it twice more: on a GPU each time would wait
        watched, self.mean_loss = seen.tolist()
        if not math.isfinite(watched):
            found = first_not_finite(self.model, x, y) or "the loss"  # with new dropout masks all may be finite
            self._emit({"train/loss": watched, "train/loss_mean": self.mean_loss}, step)
            raise FloatingPointError(f"step {step}: {found} is not finite.")
        if step == 0:
            self.initial_loss = watched
        self.log("train/loss", seen[0], prog_bar=True, logger=False, batch_size=len(y))
        self._emit({"train/loss": watched, "train/loss_mean": self.mean_loss, "lr": lr}, step)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self._set_learning_rate(
            self.trainer.global_step
        )  # for LearningRateMonitor, which reads it before the next step

    def _set_learning_rate(self, step: int) -> float:
        lr = learning_rate(step, self.optim, self.trainer.max_steps)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = lr
        return lr

    def _unwatched_steps(self, batch: Minibatches, first: int) -> list[Tensor]:
        assert self.unwatched is not None
        assert self.engine is not None
        losses: list[Tensor] = []
        for x, y in batch.unwatched(self.engine.call_length * self.engine.calls_in_slice):
            lrs = [learning_rate(first + i, self.optim, self.trainer.max_steps) for i in range(len(y))]
            try:
                losses.append(self.unwatched(x, y, lrs, first))
            except FloatingPointError:
                step = first + len(y) - 1
                self._emit({"train/loss": math.nan, "train/loss_mean": math.nan}, step)  # it tells why the run ends
                raise
            first += len(y)
        return losses

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = list(self.model.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.trainer.precision == "16-mixed":  # an overflow is no error there: the gradient scaler skips the step
            gradients = []
        # parameters too, because after tanh an infinite one shows neither in the loss nor in the gradients
        if not all_finite([*parameters, *gradients]):
            found = first_not_finite_parameter(self.model) or first_not_finite_gradient(self.model)
            raise FloatingPointError(f"step {self.trainer.global_step}: {found} is not finite.")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        # one loss for each example, because torchmetrics 1.9 with nan_strategy="disable" ignores weights
        self.val_loss.update(cross_entropy(logits, y, reduction="none"))
        self.val_perplexity.update(logits.unsqueeze(1), y.unsqueeze(1))

    def on_validation_epoch_end(self) -> None:
        loss = self.val_loss.compute()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"step {self.trainer.global_step - 1}: the validation loss is not finite.")
        if found := first_not_finite_parameter(self.model):
            raise FloatingPointError(f"step {self.trainer.global_step - 1}: {found} is not finite.")
        metrics = {"val/loss": loss, "val/perplexity": self.val_perplexity.compute()}
        self.log_dict(metrics, logger=False, sync_dist=self.trainer.world_size > 1)
        self._emit({tag: value.item() for tag, value in metrics.items()}, self.trainer.global_step - 1)
        self.val_loss.reset()
        self.val_perplexity.reset()

    def _emit(self, metrics: dict[str, float], step: int) -> None:
        # not by self.log, which would log `epoch` at every step
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["makemore_pl"] = {
            "initial_loss": self.initial_loss,
            "dropout_generator": torch.get_rng_state(),
            "dropout_generators": self._of_all_processes(),
            # not asked for in a run on the CPU, because that would initialize CUDA
            "dropout_generator_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        files = [logger for logger in self.loggers if isinstance(logger, JSONLinesLogger)]
        checkpoint["seconds"] = self.seconds
        checkpoint["written"] = {str(logger.path.absolute()): logger.written() for logger in files}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint["makemore_pl"]
        self.initial_loss = ours.get("initial_loss")
        self._earlier, self._written = checkpoint.get("seconds", 0.0), checkpoint.get("written", {})
        self._untimed = 0 if "seconds" in checkpoint else checkpoint["global_step"]
        torch.set_rng_state(ours["dropout_generator"].cpu())
        state, device = ours.get("dropout_generator_cuda"), self.trainer.strategy.root_device
        if state is not None and device.type == "cuda":
            torch.cuda.set_rng_state(state.cpu(), device)
        elif self.hparams["model"]["dropout"] and (state is None) == (device.type == "cuda"):
            before = "CPU" if state is None else "GPU"
            log.warning("The run was on the %s before: dropout's masks now come from another generator.", before)
        states = ours.get("dropout_generators", [])
        self._has_own_masks = len(states) == self.trainer.world_size
        if self._has_own_masks:
            own = states[self.trainer.global_rank].cpu()
            torch.cuda.set_rng_state(own, device) if device.type == "cuda" else torch.set_rng_state(own)

    def _of_all_processes(self) -> list[Tensor]:
        """The states of the generators for dropout's masks of all processes; empty if there is only one process."""
        if self.trainer.world_size == 1:
            return []
        on_gpu = self.device.type == "cuda"
        own = (torch.cuda.get_rng_state(self.device) if on_gpu else torch.get_rng_state()).to(self.device)
        states = [torch.empty_like(own) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(states, own)
        return [state.cpu() for state in states]
