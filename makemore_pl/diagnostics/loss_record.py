"""The training loss of every step, which loss it is, and what its targets are like."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from makemore_pl.doctor.loss_graph import LossGraph, read_loss
from makemore_pl.doctor.target_statistics import TargetStatistics

ENOUGH, BATCHES = 4096, 128
"""Targets to be counted, and batches in which that is tried."""


class LossRecord:
    """What backward starts from, batch by batch. Of several losses in a batch the first one counts."""

    def __init__(self) -> None:
        self.graph: LossGraph | None = None
        """Of the first batch."""
        self.targets = TargetStatistics()
        self.most = 0
        """Losses of a batch."""
        self.fetched: list[int] = []
        """Steps of the losses that `stacked` has given last."""
        self._here, self._batches = 0, 0
        self._waiting: list[tuple[int, Tensor]] = []
        """Steps and losses that are still on the device."""

    @property
    def has_enough(self) -> bool:
        """Whether targets have been counted that suffice for a constant guess."""
        return self._batches > BATCHES or self.graph is None or self.targets.count >= ENOUGH

    def begin(self) -> None:
        """Before a batch."""
        self._here = 0
        self._batches += 1

    def see(self, step: int, loss: Tensor, scaler: Any, parts: int = 1) -> bool:
        """Before a backward; whether the loss is the batch's first.

        Args:
            parts: into how many Lightning divides the loss of a step, where gradients are accumulated.
            scaler: of 16-bit precision, which has multiplied the loss; else None.
        """
        self._here += 1
        self.most = max(self.most, self._here)
        if self._here > 1 or loss.numel() != 1:
            return False
        self._waiting.append((step, parts * unscaled(loss.detach(), scaler)))
        return True

    def read(self, loss: Tensor, early: bool) -> None:
        """Look into the graph of the loss that was seen last.

        Args:
            early: also compare it with the mean of its terms.
        """
        graph = read_loss(loss)
        if self._batches == 1:
            self.graph = graph
        if graph and self.graph and graph.kind == self.graph.kind:
            self.targets.see(graph)
            if early:
                self.targets.see_number(graph, self._waiting[-1][1])

    def read_batch(self, batch: Any) -> None:
        """After the first batch: what its loss does not keep. What it keeps is let go of."""
        if self._batches == 1 and self.graph:
            if self.graph.targets is None:
                self.targets.see_batch(self.graph, batch)
            self.graph = replace(self.graph, output=None, targets=None, weight=None)

    def stacked(self) -> Tensor | None:
        """The losses since the last time, (steps, 1), on their device; None where there is none."""
        if not self._waiting:
            return None
        self.fetched = [step for step, _ in self._waiting]
        device = self._waiting[0][1].device
        losses = [loss.to(device, torch.float32).reshape(1) for _, loss in self._waiting]
        self._waiting = []
        return torch.stack(losses)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps. Fetch the waiting losses before."""
        graph = self.graph
        known = graph and {name: getattr(graph, name) for name in ("kind", "alone", "activation", "ignored")}
        return {"graph": known, "targets": self.targets.state(), "most": self.most, "batches": self._batches}

    def restore(self, state: dict[str, Any]) -> None:
        self.graph = state["graph"] and LossGraph(**state["graph"], output=None, targets=None)
        self.targets.restore(state["targets"])
        self.most, self._batches = state["most"], state["batches"]


def unscaled(loss: Tensor, scaler: Any) -> Tensor:
    """Without the factor of a gradient scaler; nothing waits for the device."""
    return loss if scaler is None else loss / scaler.scale(torch.ones_like(loss))
