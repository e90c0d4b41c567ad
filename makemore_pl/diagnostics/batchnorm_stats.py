"""BatchNorm's batch statistics beside its running statistics."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.callback import PatternCallback, log_spaced
from makemore_pl.diagnostics.host import LightningModule, Trainer
from makemore_pl.diagnostics.offers import offer
from makemore_pl.diagnostics.taps import dense, select
from makemore_pl.module_copy import copy_without_hooks


class BatchNormStats(PatternCallback):
    """BatchNorm's batch statistics against its running statistics.

    | tag | meaning | shape, unit |
    |---|---|---|
    | batchnorm_mean_lag/<layer> | distance of running from batch mean; 1: no more than the batch's own noise | 1 |
    | batchnorm_var_lag/<layer> | the same for the variance | 1 |
    | batchnorm_drift/<layer> | rms step of the running mean since the last watched step | running std |
    | batchnorm_weight_std/<layer> | spread of BatchNorm's weight | units, 1 |
    | batchnorm_bias_std/<layer> | spread of its bias | units, 1 |
    | batchnorm_gap/loss | loss with running less loss with batch statistics, on the same examples | nats |

    Of several calls in a step the first one is measured. A BatchNorm without running statistics is left out. The batch
    statistics of SyncBatchNorm are those of this process. batchnorm_gap is measured at log-spaced steps and at the last
    one, on modules that offer a `probe()` (see `offers.Probed`).

        from makemore_pl.diagnostics import BatchNormStats
        trainer = Trainer(callbacks=[BatchNormStats()])
        trainer.fit(module, loader)  # batchnorm_mean_lag/...: 1 is healthy, 10 is stale
    """

    kind = "BatchNorm"

    def __init__(self, pattern: str | None = None, every_n_steps: int = 100) -> None:
        super().__init__(pattern, every_n_steps)
        self._means: dict[str, Tensor] = {}
        """Layer -> its running mean at the last watched step."""
        self._now: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
        """Layer -> module, running mean and running variance at this step."""

    def knows(self, module: nn.Module) -> bool:
        return isinstance(module, _BatchNorm)

    def _select(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        return select(pl_module, self.knows, self.pattern)

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.pattern:  # a network without BatchNorm has nothing that could be missed
            super().start(trainer, pl_module)

    def begin(self, *_: Any) -> None:
        self._now = {}

    def see_input(self, layer: str, module: nn.Module, x: Tensor) -> None:
        assert isinstance(module, _BatchNorm)
        if module.running_mean is None or module.running_var is None:
            self.leave_out(layer, "it keeps no running statistics to compare a batch with")
            return
        if layer in self._now:
            return
        running_mean, running_var = module.running_mean.clone(), module.running_var.clone()
        self._now[layer] = module, running_mean, running_var
        mean, var, n, n_of_mean, n_of_var = statistics.batch_statistics(x)
        self.put(f"batchnorm_mean_lag/{layer}", statistics.mean_lag, mean, running_mean, running_var, n_of_mean)
        self.put(f"batchnorm_var_lag/{layer}", statistics.var_lag, var, running_var, n, n_of_var)

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for layer, (module, mean, var) in self._now.items():
            for name, parameter in module.named_parameters(recurse=False):  # after the step
                self.put(f"batchnorm_{name}_std/{layer}", statistics.std, dense(parameter.detach()))
            if layer in self._means and self._means[layer].shape == mean.shape:
                self.put(f"batchnorm_drift/{layer}", _drift, mean, self._means[layer].to(mean.device), var)
            self._means[layer] = mean
        probe = offer(pl_module, "probe")
        if probe and self._now and (log_spaced(self.step or 0) or self.last):
            self.put("batchnorm_gap/loss", lambda: _loss_gap(*probe()))

    def reset(self) -> None:
        self._means = {}

    def state_dict(self) -> dict[str, Any]:
        return {"means": dict(self._means)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._means = dict(state_dict["means"])


def _drift(now: Tensor, then: Tensor, var: Tensor) -> Tensor:
    moved = now - then
    # 0 where nothing moved, also in a dead channel, whose running variance is 0
    return statistics.rms(torch.where(moved == 0, 0.0, moved / var.sqrt()))


def _loss_gap(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    # on a copy without hooks, so that neither the running statistics nor the open tap notice these forward passes
    network = copy_without_hooks(network, share_tensors=True).eval()
    running = loss(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean = module.running_var = None  # then it takes batch statistics even in eval mode
    return running - loss(network)
