"""The lecture's distributions: histograms of tensors and rasters of saturated units, computed on the device."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from makemore_pl.diagnostics import dashboard, statistics
from makemore_pl.diagnostics.activation_stats import NO_AXIS, ActivationCallback, is_tanh
from makemore_pl.diagnostics.callback import log_spaced
from makemore_pl.diagnostics.dashboard import Histogram
from makemore_pl.diagnostics.host import LightningModule, Trainer
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.diagnostics.tag_names import matrices
from makemore_pl.diagnostics.taps import dense
from makemore_pl.diagnostics.update import Update
from makemore_pl.diagnostics.watch import Arrays, fetch

log = logging.getLogger(__name__)

BINS = 50
EXAMPLES, UNITS = 64, 200
"""A raster has at most so many examples and units."""
Raster = np.ndarray[Any, np.dtype[np.bool_]]
Measurement = tuple[Callable[..., Tensor], Tensor, tuple[Any, ...]]
"""A statistic, its tensor, and its other arguments."""


def histogram(x: Tensor, bound: float | None = None) -> Tensor:
    """One tensor (1 + BINS): the bound up to which the bins reach on both sides of 0, then the counts of BINS equal
    bins.

    The default of `bound` is the largest finite absolute value, or 1 if that is 0. Elements that are not finite are not
    counted here; GradientStats counts them.
    """
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    x = x.detach().flatten().float()
    finite = x.isfinite()
    x = torch.where(finite, x, 0)
    reach = x.abs().max() if x.numel() else x.new_zeros(())
    reach = torch.where(reach == 0, 1, reach) if bound is None else torch.full_like(reach, bound)
    # in place, because activations can be large; the last bin takes what is not finite
    place = (x / reach).add_(1).mul_(BINS / 2).long().clamp_(0, BINS - 1).masked_fill_(~finite, BINS)
    counts = torch.zeros(BINS + 1, dtype=torch.int64, device=x.device)
    counts.scatter_add_(0, place, counts.new_ones(1).expand_as(place))
    return torch.cat([reach.reshape(1), counts[:BINS]])


def raster(x: Tensor, axis: int) -> Tensor:
    """Whether each activation of a tanh is saturated: (examples * units) flat, at most EXAMPLES by UNITS."""
    units = statistics.units_first(x, axis)[:UNITS, :EXAMPLES].T
    return (units.abs() > statistics.SATURATED).flatten()


def edges_and_counts(packed: "np.ndarray[Any, np.dtype[np.float32]]") -> Histogram:
    """Edges and counts from what `histogram` returns."""
    reach = float(packed[0])
    return np.linspace(-reach, reach, BINS + 1).tolist(), packed[1:].astype(np.int64).tolist()


class Distributions(ActivationCallback):
    """Collects `histograms` and `rasters` of saturated units at the steps that it `shows`.

    At the other steps that are due it keeps copies of the tensors until the next such step. So it can show the last
    step of a run that ends early.
    """

    missing = "activations and their gradients"
    reads_gradients = True

    def __init__(self, pattern: str | None = None, every_n_steps: int = 100, unit_axis: int | None = None) -> None:
        super().__init__(pattern, every_n_steps)
        self.unit_axis = unit_axis
        self.histograms: dict[str, Histogram] = {}
        self.rasters: dict[str, Raster] = {}
        self._shapes: dict[str, torch.Size] = {}
        """Tag -> shape of its raster."""
        self._copies: dict[str, Measurement] = {}
        """What this step will need if it turns out to be the last one shown; empty if the step is shown now."""
        self.kept: dict[str, Measurement] = {}
        """The copies of the last step that was due and not shown; empty if a later step was shown."""
        self.kept_step = 0

    def shows(self, step: int, last: bool) -> bool:
        """Whether to show a step that is due."""
        raise NotImplementedError

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().start(trainer, pl_module)
        self.kept = {}
        assert self.watch
        self.reads_gradients = not self.watch.scaled
        if self.watch.scaled:
            log.info("%s leaves out activation gradients: they are scaled for 16-bit precision.", type(self).__name__)

    def begin(self, *_: object) -> None:
        assert self.step is not None
        self._shapes, self._copies, self.kept = {}, {}, {}
        self._showing = self.shows(self.step, self.last)

    def collect(self, tag: str, key: object, statistic: Callable[..., Tensor], x: Tensor, *more: Any) -> None:
        """Measure now, or keep a copy to measure later; once for all callbacks that ask for the same key."""
        assert self.watch
        if self._showing:
            self.put(tag, self.watch.once, (key, statistic, *more), statistic, x, *more)
        else:
            self._copies[tag] = statistic, self.watch.once((key, "copy"), torch.clone, x), more

    def see_output(self, layer: str, module: nn.Module, x: Tensor, unit_axis: int | None) -> None:
        tanh = is_tanh(module)
        self.collect(f"activations/{layer}", ("out", module), histogram, x, 1.0 if tanh else None)
        axis = unit_axis if self.unit_axis is None else self.unit_axis
        if tanh and axis is None:
            self.leave_out(f"the raster of {layer}", NO_AXIS)
        elif tanh and axis is not None:
            self._shapes[f"saturation/{layer}"] = statistics.units_first(x, axis)[:UNITS, :EXAMPLES].T.shape
            # the tag saturation/... belongs to a number, so the raster is measured under another one
            self.collect(f"raster of saturation/{layer}", ("out", module), raster, x, axis)

    def before_update(self, update: Update) -> None:
        if update.readable:
            for name, grad in update.matrix_gradients():
                self.collect(f"weight_grads/{name}", ("grad", name), histogram, grad)

    def see_gradient(self, layer: str, module: nn.Module, grad: Tensor) -> None:
        if self._showing:
            self.collect(f"activation_grads/{layer}", ("out grad", module), histogram, dense(grad))
        else:  # the tap's own copy
            self._copies[f"activation_grads/{layer}"] = histogram, dense(grad), ()

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.step is not None
        self.kept, self.kept_step = self._copies, self.step
        if self._showing:
            for name, parameter in matrices(pl_module).items():
                self.collect(f"weights/{name}", ("weight", name), histogram, dense(parameter.detach()))

    def measured(
        self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float], arrays: Arrays
    ) -> None:
        if self.step is not None and self._showing:
            self._unpack({tag: arrays[tag] for tag in self.values})
            self.show(trainer, step)

    def finish(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        if self.kept:
            with torch.no_grad():
                self._unpack(fetch({tag: what(x, *more) for tag, (what, x, more) in self.kept.items()})[1])
            self.kept = {}
            self.show(trainer, self.kept_step)

    def _unpack(self, arrays: Arrays) -> None:
        rasters = {tag: f"raster of {tag}" for tag in self._shapes if f"raster of {tag}" in arrays}
        self.rasters = {tag: arrays[key].astype(bool).reshape(self._shapes[tag]) for tag, key in rasters.items()}
        self.histograms = {tag: edges_and_counts(a) for tag, a in arrays.items() if tag not in rasters.values()}

    def show(self, trainer: Trainer, step: int) -> None:
        """Show `histograms` and `rasters`, which were measured at this step."""
        raise NotImplementedError


class Histograms(Distributions):
    """The lecture's distributions, at steps 0, 1, 2, 5, 10, 20, 50, ... and the last.

    | tag | meaning | shape, unit |
    |---|---|---|
    | activations/<layer> | activations of the watched minibatch | 50 bins, count |
    | activation_grads/<layer> | gradient of the loss by them | 50 bins, count |
    | weights/<parameter> | matrices of parameters, after the step | 50 bins, count |
    | weight_grads/<parameter> | their gradient, before clipping | 50 bins, count |
    | saturation/<layer> | which units of a tanh saturate, in diagnostics.jsonl only | 64 examples, 200 units |

    If a run ends early, the last step that was due (see `every_n_steps`) is shown, and the final weights.

        from makemore_pl.diagnostics import Histograms
        trainer = Trainer(callbacks=[Histograms()], logger=TensorBoardLogger("logs"))
        trainer.fit(module, loader)  # the tabs Histograms and Distributions of TensorBoard
    """

    def shows(self, step: int, last: bool) -> bool:
        return last or log_spaced(step)

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().start(trainer, pl_module)
        if trainer.loggers and not dashboard.shows_histograms(trainer):
            kinds = ", ".join(type(logger).__name__ for logger in trainer.loggers)
            self.leave_out("everything", f"{kinds} can't show histograms. Use TensorBoardLogger or JSONLinesLogger")

    def finish(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        super().finish(trainer, pl_module, step)
        values = {f"weights/{name}": histogram(dense(p.detach())) for name, p in matrices(pl_module).items()}
        self._unpack(fetch(values)[1])
        self.rasters = {}
        self.show(trainer, step)

    def show(self, trainer: Trainer, step: int) -> None:
        dashboard.log_histograms(trainer, self.histograms, step)
        for logger in trainer.loggers:
            if isinstance(logger, JSONLinesLogger):
                logger.log_histograms(self.histograms, step)
                logger.log_rasters(self.rasters, step)
