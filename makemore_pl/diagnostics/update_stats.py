"""The step that an optimizer has really taken."""

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.callback import (
    DiagnosticsCallback,
    matrices,
    parameters,
)
from makemore_pl.diagnostics.taps import ParameterSnapshot

log = logging.getLogger(__name__)


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
