"""The gradient of the loss, for parameters and for activations."""

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.activation_stats import ActivationCallback
from makemore_pl.diagnostics.callback import (
    gradient,
    gradients,
    is_scaled,
    matrices,
    parameters,
    steps_scaled,
)
from makemore_pl.diagnostics.taps import ActivationTap

log = logging.getLogger(__name__)


class GradientStats(ActivationCallback):
    """The gradient of the loss, for each matrix of parameters and each activation.

    | tag | meaning | shape, unit |
    |---|---|---|
    | grad_std/<parameter> | standard deviation of the gradient, before clipping | all elements, nats per unit |
    | grad_data_ratio/<parameter> | standard deviation of gradient over that of parameter | 1 |
    | activation_grad_std/<layer> | standard deviation of the loss's gradient by the activations | nats per unit |
    | grad_norm/before_clipping | Euclidean norm of all gradients | nats per unit |
    | grad_norm/after_clipping | the same after clipping | nats per unit |
    | clipped/share | share of the last 100 watched steps in which clipping shortened the gradient | fraction |
    | not_finite/gradients | elements of gradients that are NaN or infinite | count |

    after_clipping and clipped are measured where the trainer or the module's configure_gradient_clipping may clip; in
    manual optimization gradients are seen as the optimizers get them. Under a 16-bit gradient scaler, whose scale it
    would show, activation_grad_std abstains; with a fused optimizer all of them do.
    """

    optional = True

    def __init__(self, pattern: str | None = None, every_n_steps: int = 100) -> None:
        super().__init__(pattern, every_n_steps)
        self._clipped: deque[Tensor] = deque(maxlen=100)
        self._steps: dict[int, tuple[list[nn.Parameter], Tensor, Tensor]] = {}
        """By optimizer: the parameters it has taken a step with, norm and not finite elements of their gradients."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._matrices = matrices(pl_module)
        self._clipping = pl_module.automatic_optimization and (
            bool(trainer.gradient_clip_val) or is_overridden("configure_gradient_clipping", pl_module)
        )
        self._scaled = is_scaled(trainer)
        if self._scaled:
            log.info("activation_grad_std abstains: its gradients are scaled for 16-bit precision.")

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        super().begin(trainer, pl_module, batch)
        self._steps = {}

    def before_update(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._scaled and steps_scaled(optimizer):
            return
        for name, grad in gradients(self._matrices, optimizer).items():
            self.values[f"grad_std/{name}"] = statistics.std(grad)
            self.values[f"grad_data_ratio/{name}"] = statistics.grad_data_ratio(grad, self._matrices[name].detach())
        mine = parameters(optimizer)
        grads = _gradients(mine)
        norm, count = statistics.global_norm(grads), statistics.not_finite(grads)
        self._steps[id(optimizer)] = list(mine), norm, count

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        super().end(trainer, pl_module, batch)
        if not self._steps:
            return
        stepped, norms, counts = zip(*self._steps.values(), strict=True)
        before = self.values["grad_norm/before_clipping"] = statistics.global_norm(norms)
        self.values["not_finite/gradients"] = torch.stack(counts).sum()
        if self._clipping and (grads := _gradients(*stepped)):
            after = self.values["grad_norm/after_clipping"] = statistics.global_norm(grads)
            self._clipped.append((after < before * (1 - 1e-6)).float())
            self.values["clipped/share"] = torch.stack([each.to(after.device) for each in self._clipped]).mean()

    def measure(self, tap: ActivationTap) -> None:
        if not self._scaled:
            for layer, grad in tap.activation_grad.items():
                self.values[f"activation_grad_std/{layer}"] = statistics.std(grad)

    def reset(self) -> None:
        self._clipped.clear()

    @property
    def state_key(self) -> str:
        return self._generate_state_key(pattern=self.pattern)

    def state_dict(self) -> dict[str, Any]:
        return {"clipped": list(self._clipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._clipped.extend(state_dict["clipped"])


def _gradients(*groups: Iterable[nn.Parameter]) -> list[Tensor]:
    return [grad for group in groups for parameter in group if (grad := gradient(parameter)) is not None]
