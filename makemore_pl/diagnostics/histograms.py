"""The lecture's distributions: histograms of tensors and rasters of saturated units, computed on the device."""

import logging
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from makemore_pl.diagnostics import dashboard, statistics
from makemore_pl.diagnostics.activation_stats import ActivationCallback
from makemore_pl.diagnostics.callback import Arrays, gradients, is_scaled, log_spaced, matrices, steps_scaled
from makemore_pl.diagnostics.dashboard import Histogram
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.diagnostics.taps import ActivationTap

log = logging.getLogger(__name__)

BINS = 50
EXAMPLES, UNITS = 64, 200
"""Of a raster, at most."""
Raster = np.ndarray[Any, np.dtype[np.bool_]]


def histogram(x: Tensor, bound: float | None = None) -> Tensor:
    """(1 + BINS): how far the bins reach on both sides of 0, and the counts of BINS equal ones.

    They reach to `bound`, by default to the largest finite absolute value, 1 where that is 0. What is not finite is
    left out; GradientStats counts it.
    """
    x = x.detach().flatten().float()
    finite = x.isfinite()
    x = torch.where(finite, x, 0)
    reach = x.abs().max() if x.numel() else x.new_zeros(())
    reach = torch.where(reach == 0, 1, reach) if bound is None else torch.full_like(reach, bound)
    place = ((x / reach + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    counts = torch.zeros(BINS, dtype=torch.int64, device=x.device).scatter_add_(0, place, finite.long())
    return torch.cat([reach.reshape(1), counts])


def edges_and_counts(packed: "np.ndarray[Any, np.dtype[np.float32]]") -> Histogram:
    """What `histogram` has packed."""
    reach = float(packed[0])
    return np.linspace(-reach, reach, BINS + 1).tolist(), packed[1:].astype(np.int64).tolist()


class Distributions(ActivationCallback):
    """Collects `histograms` and `rasters` of saturated units on the steps that are due; shows nothing itself."""

    optional = True

    def due(self, step: int, last: bool, watched: bool) -> bool:
        return last or log_spaced(step)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._matrices = matrices(pl_module)
        self._scaled = is_scaled(trainer)
        if self._scaled:
            log.info("%s leaves out activation gradients: they are scaled for 16-bit precision.", type(self).__name__)
        self.histograms: dict[str, Histogram] = {}
        self.rasters: dict[str, Raster] = {}
        self._shapes: dict[str, torch.Size] = {}

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        super().begin(trainer, pl_module, batch)
        self._shapes = {}

    def before_update(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._scaled and steps_scaled(optimizer):
            return
        for name, grad in gradients(self._matrices, optimizer).items():
            self.values[f"weight_grads/{name}"] = histogram(grad)

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        super().end(trainer, pl_module, batch)
        for name, parameter in self._matrices.items():
            self.values[f"weights/{name}"] = histogram(parameter)

    def measure(self, tap: ActivationTap) -> None:
        for layer, activation in tap.activation.items():
            tanh = isinstance(tap.modules[layer], nn.Tanh)
            self.values[f"activations/{layer}"] = histogram(activation, 1.0 if tanh else None)
            if tanh:
                units = statistics.units_first(activation)[:UNITS, :EXAMPLES].T
                self._shapes[f"saturation/{layer}"] = units.shape
                # flat, because its tag is also that of a number
                self.values[f"raster of saturation/{layer}"] = (units.abs() > statistics.SATURATED).flatten()
        for layer in tap.activation:  # in the order of forward
            if layer in tap.activation_grad and not self._scaled:
                self.values[f"activation_grads/{layer}"] = histogram(tap.activation_grad[layer])

    def measured(
        self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float], arrays: Arrays
    ) -> None:
        if self.step is None:
            return
        rasters = {tag: f"raster of {tag}" for tag in self._shapes}
        self.rasters = {tag: arrays[key].astype(bool).reshape(self._shapes[tag]) for tag, key in rasters.items()}
        self.histograms = {tag: edges_and_counts(arrays[tag]) for tag in self.values if tag not in rasters.values()}


class Histograms(Distributions):
    """The lecture's distributions, at steps 0, 1, 2, 5, 10, 20, 50, ... and the last.

    | tag | meaning | shape, unit |
    |---|---|---|
    | activations/<layer> | activations of the watched minibatch | 50 bins, count |
    | activation_grads/<layer> | gradient of the loss by them | 50 bins, count |
    | weights/<parameter> | matrices of parameters, after the step | 50 bins, count |
    | weight_grads/<parameter> | their gradient, before clipping | 50 bins, count |
    | saturation/<layer> | which units of a tanh saturate, in diagnostics.jsonl only | 64 examples, 200 units |
    """

    def measured(
        self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float], arrays: Arrays
    ) -> None:
        if self.step is None:
            return
        super().measured(trainer, pl_module, step, numbers, arrays)
        dashboard.log_histograms(trainer, self.histograms, step)
        for logger in trainer.loggers:
            if isinstance(logger, JSONLinesLogger):
                logger.log_histograms(self.histograms, step)
                logger.log_rasters(self.rasters, step)
