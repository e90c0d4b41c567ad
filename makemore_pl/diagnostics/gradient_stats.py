"""The gradient of the loss, for parameters and for activations."""

import logging
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.activation_stats import ActivationCallback
from makemore_pl.diagnostics.host import LightningModule, Trainer, lightning_s_own
from makemore_pl.diagnostics.taps import dense
from makemore_pl.diagnostics.update import Update

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

    after_clipping and clipped are measured if the trainer or the module's configure_gradient_clipping may clip. In
    manual optimization gradients are measured as the optimizers get them. If an optimizer evaluates the loss several
    times in a batch, the first evaluation is measured. Under a 16-bit gradient scaler activation_grad_std abstains,
    because these gradients are scaled; with a fused optimizer under a scaler all of them abstain.

        from makemore_pl.diagnostics import GradientStats
        trainer = Trainer(callbacks=[GradientStats()], gradient_clip_val=1.0)
        trainer.fit(module, loader)  # clipped/share: if it stays near 1, the learning rate is too high
    """

    missing = "activation gradients"
    reads_gradients = True

    def __init__(self, pattern: str | None = None, every_n_steps: int = 100) -> None:
        super().__init__(pattern, every_n_steps)
        self._clipped: deque[Tensor] = deque(maxlen=100)
        self._before: list[Tensor] = []
        """Norm of the gradients of each optimizer in this batch, before and after clipping."""
        self._after: list[Tensor] = []
        self._counts: list[Tensor] = []
        """Number of elements of these gradients that are not finite."""

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().start(trainer, pl_module)
        self._clipping = pl_module.automatic_optimization and (
            bool(trainer.gradient_clip_val) or not lightning_s_own(pl_module.configure_gradient_clipping)
        )
        assert self.watch
        self.reads_gradients = not self.watch.scaled
        if self.watch.scaled:
            log.info("activation_grad_std abstains: its gradients are scaled for 16-bit precision.")

    def begin(self, *_: Any) -> None:
        self._before, self._after, self._counts = [], [], []

    def before_update(self, update: Update) -> None:
        if not update.readable:
            return
        for name, grad in update.matrix_gradients():
            data = update.matrices[name].detach()
            self.put(f"grad_std/{name}", statistics.std, grad)
            self.put(f"grad_data_ratio/{name}", statistics.grad_data_ratio, grad, dense(data))
        self._before.append(_norm(update))
        self._counts.append(statistics.not_finite(dense(grad) for grad in update.gradients()))

    def after_clipping(self, update: Update) -> None:
        if self._clipping and update.readable:
            self._after.append(_norm(update))

    def see_gradient(self, layer: str, module: nn.Module, grad: Tensor) -> None:
        self.put(f"activation_grad_std/{layer}", statistics.std, dense(grad))

    def end(self, *_: Any) -> None:
        if not self._before:
            return
        if not any(tag.startswith("grad_std/") for tag in self.values):
            self.leave_out("grad_std", "no parameter of two or more dimensions has a gradient")
        before = self.values["grad_norm/before_clipping"] = statistics.global_norm(self._before)
        self.values["not_finite/gradients"] = torch.stack(self._counts).sum()
        if self._after and len(self._after) == len(self._before):
            after = self.values["grad_norm/after_clipping"] = statistics.global_norm(self._after)
            self._clipped.append((after < before * (1 - 1e-6)).float())
            self.values["clipped/share"] = torch.stack([each.to(after.device) for each in self._clipped]).mean()

    def reset(self) -> None:
        self._clipped.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"clipped": list(self._clipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._clipped = deque(state_dict["clipped"], maxlen=100)


@torch.no_grad()
def _norm(update: Update) -> Tensor:
    whole = [grad if type(grad) is Tensor else statistics.global_norm([dense(grad)]) for grad in update.gradients()]
    return statistics.global_norm(dense(grad) for grad in whole)
