"""The step that an optimizer has really taken."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.callback import DiagnosticsCallback
from makemore_pl.diagnostics.taps import dense
from makemore_pl.diagnostics.update import Update


class UpdateStats(DiagnosticsCallback):
    """The change of each parameter relative to its size, with any optimizer, weight decay and clipping.

    | tag | meaning | shape, unit |
    |---|---|---|
    | update_data_ratio/<parameter> | log10 of std(after - before) over std(after) | decades |
    | unmoved/share | share of these parameters that did not move: 1 for a skipped step | fraction |

    It measures parameters of two or more dimensions. If an optimizer steps several times in a batch, the sum of these
    steps is measured.

        from makemore_pl.diagnostics import UpdateStats
        trainer = Trainer(callbacks=[UpdateStats()])
        trainer.fit(module, loader)  # update_data_ratio/...: the median of the matrices is healthy from -3.5 to -1
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        super().__init__(every_n_steps)
        self._before: dict[Optimizer, dict[str, Tensor]] = {}
        """Optimizer -> copies of its parameters before the step."""
        self._updates: list[Update] = []

    def begin(self, *_: Any) -> None:
        self._before, self._updates = {}, []

    def before_update(self, update: Update) -> None:
        moving = {name: parameter for name, parameter in update.matrices.items() if parameter.requires_grad}
        self._before[update.optimizer] = {name: parameter.detach().clone() for name, parameter in moving.items()}
        self._updates.append(update)

    def after_update(self, update: Update) -> None:
        for name, before in self._before[update.optimizer].items():
            self.put(f"update_data_ratio/{name}", _ratio, before, update.matrices[name].detach())

    def end(self, *_: Any) -> None:
        for update in self._updates:
            names = self._before[update.optimizer]
            if not any(f"update_data_ratio/{name}" in self.values for name in names):
                self.after_update(update)  # a gradient scaler has skipped the step
        if not any(self._before.values()):
            self.leave_out("everything", "no parameter of two or more dimensions is trained")
        if self.values:
            self.values["unmoved/share"] = torch.isneginf(torch.stack(list(self.values.values()))).float().mean()
        self._before, self._updates = {}, []


def _ratio(before: Tensor, after: Tensor) -> Tensor:
    return statistics.update_data_ratio(dense(after - before), dense(after))
