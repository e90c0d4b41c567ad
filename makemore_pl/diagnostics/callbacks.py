"""Lightning callbacks that measure: activations, gradients, updates, BatchNorm.

They attach to any LightningModule, look at watched steps only and don't change training by one bit.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.taps import ActivationTap, BatchNormTap, ParameterSnapshot
from makemore_pl.diagnostics.watching import (
    DiagnosticsCallback,
    TapCallback,
    gradient,
    gradients,
    is_scaled,
    log_spaced,
    matrices,
    parameters,
    steps_scaled,
)
from makemore_pl.unhooked import unhooked

log = logging.getLogger(__name__)

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.Tanh,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.Mish,
    nn.Sigmoid,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Softsign,
    nn.Softplus,
)


class ActivationCallback(TapCallback[ActivationTap]):
    """A callback with a tap on activation functions."""

    types = ACTIVATIONS

    def make_tap(self, modules: dict[str, nn.Module]) -> ActivationTap:
        return ActivationTap(modules)


class ActivationStats(ActivationCallback):
    """What comes out of each activation function, and what goes in, on the watched minibatch.

    | tag | meaning | shape, unit |
    |---|---|---|
    | activation_mean/<layer> | mean of the activations | all elements, 1 |
    | activation_std/<layer> | their standard deviation | all elements, 1 |
    | preactivation_std/<layer> | standard deviation of the activation function's input | all elements, 1 |
    | stuck_units/<layer> | share of units at zero on 95 % of the examples | units, fraction |
    | saturation/<layer> | share of abs(tanh) > 0.97 | all elements, fraction |
    | saturation_excess/<layer> | saturation less what a Gaussian of this preactivation_std has | fraction |
    | dead_units/<layer> | share of units saturated on every example | units, fraction |
    | linear_share/<layer> | share of preactivations within (-0.8, 0.8) | all elements, fraction |
    | zero_share/<layer> | share of activations that are exactly zero | all elements, fraction |

    saturation, saturation_excess, dead_units and linear_share are measured for tanh, zero_share for ReLU. With
    accumulated gradients they are of the last of the accumulated minibatches.
    """

    def measure(self, tap: ActivationTap) -> None:
        for layer, a in tap.activation.items():
            z = tap.preactivation[layer]
            spread = statistics.std(z)
            self.values |= {
                f"activation_mean/{layer}": statistics.mean(a),
                f"activation_std/{layer}": statistics.std(a),
                f"preactivation_std/{layer}": spread,
                f"stuck_units/{layer}": statistics.stuck_units(a),
            }
            if isinstance(tap.modules[layer], nn.Tanh):
                saturation = statistics.saturation(a)
                self.values |= {
                    f"saturation/{layer}": saturation,
                    f"saturation_excess/{layer}": saturation - statistics.gaussian_saturation(spread),
                    f"dead_units/{layer}": statistics.dead_units(a),
                    f"linear_share/{layer}": statistics.linear_share(z),
                }
            elif isinstance(tap.modules[layer], nn.ReLU):
                self.values[f"zero_share/{layer}"] = statistics.zero_share(a)


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


class UpdateStats(DiagnosticsCallback):
    """The step that was really taken, whatever the optimizer, weight decay and clipping, relative to the parameter.

    | tag | meaning | shape, unit |
    |---|---|---|
    | update_data_ratio/<parameter> | log10 of std(after - before) over std(after) | decades |
    | unmoved/share | share of these parameters that did not move: 1 for a skipped step | fraction |
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._matrices = matrices(pl_module)
        self._snapshots: dict[int, ParameterSnapshot] = {}

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self._snapshots = {}

    def before_update(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # an optimizer can step or evaluate more than once a batch: all of it is the step
        if id(optimizer) not in self._snapshots:
            mine = parameters(optimizer)
            if moving := {name: p for name, p in self._matrices.items() if p in mine and p.requires_grad}:
                self._snapshots[id(optimizer)] = ParameterSnapshot(moving)

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        for snapshot in self._snapshots.values():
            for name, step in snapshot.updates().items():
                ratio = statistics.update_data_ratio(step, snapshot.parameters[name].detach())
                self.values[f"update_data_ratio/{name}"] = ratio
        if self.values:
            self.values["unmoved/share"] = torch.isneginf(torch.stack(list(self.values.values()))).float().mean()
        self.close()

    def close(self) -> None:
        self._snapshots = {}


class BatchNormStats(TapCallback[BatchNormTap]):
    """BatchNorm's batch statistics against its running statistics.

    | tag | meaning | shape, unit |
    |---|---|---|
    | batchnorm_mean_lag/<layer> | distance of running from batch mean; 1: no more than the batch's own noise | 1 |
    | batchnorm_var_lag/<layer> | the same for the variance | 1 |
    | batchnorm_drift/<layer> | rms step of the running mean since the last watched step | running std |
    | batchnorm_weight_std/<layer> | spread of BatchNorm's weight | units, 1 |
    | batchnorm_bias_std/<layer> | spread of its bias | units, 1 |
    | batchnorm_gap/loss | loss with running less loss with batch statistics, on the same examples | nats |

    batchnorm_gap is measured at log-spaced steps and the last, on modules that have a `probe()`: it returns their
    network and a function that computes the loss of such a network on a fixed set of examples. Without BatchNorm in the
    network nothing is measured.
    """

    types = (_BatchNorm,)
    optional = True

    def __init__(self, pattern: str | None = None, every_n_steps: int = 100) -> None:
        super().__init__(pattern, every_n_steps)
        self._means: dict[str, Tensor] = {}
        """Running means at the last watched step."""

    def make_tap(self, modules: dict[str, nn.Module]) -> BatchNormTap:
        return BatchNormTap(modules)

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        super().end(trainer, pl_module, batch)
        probe = getattr(pl_module, "probe", None)
        if self._tap and probe and (log_spaced(self.step or 0) or self.last):
            self.values["batchnorm_gap/loss"] = _loss_gap(*probe())

    def measure(self, tap: BatchNormTap) -> None:
        for layer, (batch_mean, batch_var, running_mean, running_var, n) in tap.statistics.items():
            module = tap.modules[layer]
            assert isinstance(module, _BatchNorm)
            self.values |= {
                f"batchnorm_mean_lag/{layer}": statistics.mean_lag(batch_mean, running_mean, running_var, n),
                f"batchnorm_var_lag/{layer}": statistics.var_lag(batch_var, running_var, n),
            }
            if layer in self._means:
                moved = running_mean - self._means[layer].to(running_mean.device)
                still = moved == 0  # also where a dead channel has no spread to measure by
                drift = torch.where(still, 0.0, moved / running_var.sqrt())
                self.values[f"batchnorm_drift/{layer}"] = statistics.rms(drift)
            self._means[layer] = running_mean
            if module.affine:
                self.values[f"batchnorm_weight_std/{layer}"] = statistics.std(module.weight.detach())
                self.values[f"batchnorm_bias_std/{layer}"] = statistics.std(module.bias.detach())

    def reset(self) -> None:
        self._means = {}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(pattern=self.pattern)

    def state_dict(self) -> dict[str, Any]:
        return {"means": dict(self._means)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._means = dict(state_dict["means"])


def _loss_gap(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    # in a copy that shares parameters only: batch statistics leave no trace, nor the probe in open taps
    network = unhooked(network, share_tensors=True).eval()
    running = loss(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean = module.running_var = None  # then it takes those of the batch, in eval mode too
    return running - loss(network)
