"""Statistics of the targets, and the loss of the best guess that does not look at the input."""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from makemore_pl.doctor.facts import Scale
from makemore_pl.doctor.loss_graph import LossGraph
from makemore_pl.doctor.minibatch import scale_of


class TargetStatistics:
    """Counts and sums of the targets of the watched minibatches, on the device of the targets."""

    def __init__(self) -> None:
        self.classes: int | None = None
        self.outside = 0.0
        """Share of the first minibatch's targets that the output's activation can't reach."""
        self.each_other = False
        """Whether the examples of a minibatch are each other's classes, as in a contrastive loss."""
        self._scales: list[Tensor] = []
        """The number that is minimized over the mean of the loss's terms, minibatch by minibatch."""
        self._alone = True
        self._scale: Scale | None = None
        self._counts: Tensor | None = None
        """(V,) how often each class was a target, times the weight of the class."""
        self.count = 0
        """Targets seen, of a regression with several outputs examples."""
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def see_number(self, graph: LossGraph, loss: Tensor) -> None:
        """The number that is minimized, beside the loss that it was made of."""
        self._alone = self._alone and graph.alone
        if self._alone and (mean := graph.mean()) is not None:
            self._scales.append(loss.detach().double() / mean.double())

    def see(self, graph: LossGraph) -> None:
        y = graph.targets
        if y is None:
            return
        if graph.kind in ("cross_entropy", "nll") and graph.output is not None:
            self.classes = graph.output.size(-1 if graph.output.ndim == 1 else 1)
            if y.is_floating_point():  # probabilities
                self.classes = y.size(-1)
                self._count(y.reshape(-1, self.classes).double().sum(0), y.numel() // self.classes)
                return
            self.each_other = len(y) > 1 and y.shape == (self.classes,) and bool((y.sort().values.diff() == 1).all())
            y = y[(y >= 0) & (y < self.classes) & (y != graph.ignored)]
            counts = torch.bincount(y, minlength=self.classes).double()
            self._count(counts if graph.weight is None else counts * graph.weight.double(), y.numel())
        elif y.is_floating_point():
            if graph.kind in ("bce", "likelihood"):
                self.classes = 2
            self._add(graph, y)

    def see_batch(self, graph: LossGraph, batch: Any) -> None:
        """Take the targets from the batch, if their number fits, because a hand-written loss does not keep them."""
        y = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        if isinstance(y, Tensor) and graph.output is not None and y.numel() == graph.output.numel():
            self._add(graph, y)

    def _count(self, counts: Tensor, n: int) -> None:
        self.count += n
        self._counts = counts if self._counts is None else self._counts.to(counts.device) + counts

    def _add(self, graph: LossGraph, y: Tensor) -> None:
        y = y.detach().double()
        y = y if y.ndim else y[None]
        if self._sum is None:
            self._scale = scale_of(y, per_feature=False)
            self.outside = _outside(y, graph.activation)
        if self._sum is not None and self._sum.shape != y.shape[1:]:
            return  # the number of outputs has changed, as with sequences of several lengths
        self.count += len(y)
        total, squares = y.sum(0), y.square().sum(0)
        self._sum = total if self._sum is None else self._sum.to(total.device) + total
        self._squares = squares if self._squares is None else self._squares.to(total.device) + squares

    def loss_scale(self) -> float | None:
        """The factor between the mean of the loss's terms and the number that is minimized; None where there is none
        that holds for all minibatches, to 0.5 %.
        """
        found = [float(each) for each in self._scales]
        if not self._alone or not found or not all(math.isfinite(each) and each > 0 for each in found):
            return None
        return found[0] if max(found) - min(found) < 0.005 * found[0] else None

    @property
    def vary(self) -> bool:
        if self._counts is not None:
            return int((self._counts > 0).sum()) > 1
        if self._squares is not None and self._sum is not None and self.count > 1:
            return bool((self._squares - self._sum.square() / self.count > 1e-12 * self._squares).any())
        return True

    def scale(self) -> Scale | None:
        """The scale of a regression's or a binary cross-entropy's targets in the first minibatch."""
        return self._scale

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, on the CPU."""
        sums = {"counts": self._counts, "sum": self._sum, "squares": self._squares}
        return {
            "classes": self.classes,
            "outside": self.outside,
            "each_other": self.each_other,
            "alone": self._alone,
            "count": self.count,
            "scales": [float(each) for each in self._scales],
            "scale": self._scale and asdict(self._scale),
            **{name: None if each is None else each.cpu() for name, each in sums.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.classes, self.outside, self.each_other = state["classes"], state["outside"], state["each_other"]
        self._alone, self.count = state["alone"], state["count"]
        self._scales = list(torch.tensor(state["scales"], dtype=torch.float64))
        self._scale = None if state["scale"] is None else Scale(**state["scale"])
        self._counts, self._sum, self._squares = state["counts"], state["sum"], state["squares"]

    def constant_guess(self, graph: LossGraph) -> float | None:
        """The loss of the best constant guess, in nats or squared error; None if it is not known."""
        if graph.kind == "cross_entropy" and self._counts is not None:
            if not self.count:
                return None
            share = self._counts[self._counts > 0] / self._counts.sum()
            # the entropy of a small sample is too low; this is Miller and Madow's correction
            return float(-(share * share.log()).sum()) + (len(share) - 1) / (2 * self.count)
        if self._sum is None or self._squares is None or self.count < 8:
            return None
        mean = self._sum / self.count
        if graph.kind == "mse":
            return float((self._squares / self.count - mean.square()).mean() * self.count / (self.count - 1))
        if graph.kind in ("bce", "likelihood"):
            p = mean.clamp(1e-9, 1 - 1e-9)
            return float(-(p * p.log() + (1 - p) * (1 - p).log()).mean())
        return None


def _outside(y: Tensor, activation: str | None) -> float:
    slack = 0.01
    if activation in ("sigmoid", "softmax"):
        return float(((y < -slack) | (y > 1 + slack)).double().mean())
    if activation == "tanh":
        return float((y.abs() > 1 + slack).double().mean())
    if activation == "relu":
        return float((y < -slack).double().mean())
    return 0.0
