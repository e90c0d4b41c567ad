"""BatchNorm's batch statistics beside its running statistics."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.callback import (
    TapCallback,
    log_spaced,
)
from makemore_pl.diagnostics.taps import BatchNormTap
from makemore_pl.module_copy import copy_without_hooks

log = logging.getLogger(__name__)


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
    network = copy_without_hooks(network, share_tensors=True).eval()
    running = loss(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean = module.running_var = None  # then it takes those of the batch, in eval mode too
    return running - loss(network)
