"""Reads the autograd graph of a loss: which loss it is, what its arguments are, and which function comes before it.

Autograd keeps the functions that made a loss, and some keep their arguments. Nothing is computed here but the mean of
the loss's terms, for comparison with the number that is minimized.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

KINDS = {
    "NllLossBackward0": "nll",
    "NllLoss2DBackward0": "nll",
    "MseLossBackward0": "mse",
    "HuberLossBackward0": "l1",
    "SmoothL1LossBackward0": "l1",
    "BinaryCrossEntropyBackward0": "likelihood",
    "BinaryCrossEntropyWithLogitsBackward0": "bce",
}
ACTIVATION_NODES = {
    "SoftmaxBackward0": "softmax",
    "LogSoftmaxBackward0": "log_softmax",
    "LogBackward0": "logarithm",
    "SigmoidBackward0": "sigmoid",
    "TanhBackward0": "tanh",
    "ReluBackward0": "relu",
}
SHAPING = (
    "View", "Reshape", "UnsafeView", "Unsqueeze", "Squeeze", "Transpose", "TBackward", "Permute", "Select", "Slice",
    "Clone", "ToCopy", "Alias", "Index", "Contiguous", "Flatten", "Expand",
)  # fmt: skip
"""Functions that change no number."""
SCALING = ("Mul", "Div", "Add", "Sub", "Rsub", "Neg")
"""Functions that shift and stretch, where their other argument is a constant."""
MULTIPLES = ("Mul", "Div", "Neg", "Mean", "Sum", *SHAPING)
"""Functions through which a number stays a multiple of the mean of a loss's terms."""
LAYERS = ("Addmm", "Convolution", "NativeBatchNorm", "NativeLayerNorm", "NativeGroupNorm", "Embedding")
"""Functions of a network's layers, behind which no loss is."""


@dataclass(frozen=True, slots=True)
class LossGraph:
    """The loss function nearest to the number that is minimized, and its arguments."""

    kind: str
    """cross_entropy, nll, bce (on logits), likelihood (a binary cross-entropy on probabilities), mse or l1."""
    alone: bool
    """Whether nothing but factors lies between this loss and the number that is minimized."""
    activation: str | None
    """The function just before the loss: softmax, sigmoid, tanh or relu."""
    output: Tensor | None
    """The argument of the loss, for a cross-entropy (N, V) log-probabilities; None if torch does not keep it."""
    targets: Tensor | None
    """Of a loss that was written by hand None; probabilities (N, V) of a cross-entropy with soft targets."""
    weight: Tensor | None = None
    """(V,) weights of the classes of a cross-entropy."""
    ignored: int | None = None
    """The class index that a cross-entropy ignores among the targets."""

    def mean(self) -> Tensor | None:
        """Of the loss's terms, 0-d, with the classes' weights; None where its arguments are not known."""
        if self.output is None:
            return None
        x, y = self.output.float(), self.targets
        if self.kind in ("cross_entropy", "nll"):
            if y is None:
                return None
            if y.is_floating_point():
                return -(x * y).sum() / len(x)
            assert self.ignored is not None
            return functional.nll_loss(x, y, self.weight, ignore_index=self.ignored)
        if self.kind == "mse":
            return x.square().mean() if y is None else functional.mse_loss(x, y.float())
        if self.kind == "l1":
            return x.abs().mean() if y is None else None
        if y is None:
            return None
        y = y.float()
        by_kind = functional.binary_cross_entropy_with_logits if self.kind == "bce" else functional.binary_cross_entropy
        return by_kind(x, y)


def read_loss(loss: Tensor) -> LossGraph | None:
    """None where no loss is found that is known here."""
    queue: list[tuple[Any, bool]] = [(loss.grad_fn, True)] if loss.grad_fn else []
    for _ in range(64):
        if not queue:
            return None
        node, alone = queue.pop(0)
        name = node.name()
        if name in KINDS:
            return _known(node, alone and not queue)
        if found := _by_hand(node, alone and not queue):
            return found
        if name.startswith(LAYERS):
            continue
        parents = [each for each, _ in node.next_functions if each is not None]
        alone = alone and len(parents) == 1 and name.startswith(MULTIPLES)
        queue += [(each, alone) for each in parents]
    return None


def _known(node: Any, alone: bool) -> LossGraph:
    kind, before = KINDS[node.name()], _before(node)
    output, targets, weight = (saved(node, name) for name in ("self", "target", "weight"))
    if kind != "nll":
        alone = alone and weight is None and saved(node, "pos_weight") is None
        if node.name() in ("HuberLossBackward0", "SmoothL1LossBackward0"):
            output = None if targets is None or output is None else output - targets
            targets = None
        return LossGraph(kind, alone, before, output, targets)
    ignored = node._saved_ignore_index
    ignored -= 2**64 if ignored >= 2**63 else 0  # torch shows it without sign
    if before == "log_softmax":
        kind, before = "cross_entropy", _before(_passed(node))
        if before == "log_softmax":  # a second log_softmax changes nothing
            before = None
    elif before == "logarithm" or (output is not None and _are_log_probabilities(output)):  # a hand-written log_softmax
        kind, before = "cross_entropy", None
    return LossGraph(kind, alone, before, output, targets, weight, ignored)


def _by_hand(node: Any, alone: bool) -> LossGraph | None:
    """A squared or absolute difference, or log-probabilities times probabilities."""
    name = node.name()
    if name.startswith(("Pow", "Abs")):
        before = _passed(node)
        squared = not name.startswith("Pow") or node._saved_exponent == 2
        if before is None or not squared or not before.name().startswith(("Sub", "Rsub")):
            return None
        return LossGraph("mse" if name.startswith("Pow") else "l1", alone, _before(before), saved(node, "self"), None)
    if name.startswith("Mul"):
        places = [place for place, (each, _) in enumerate(node.next_functions) if each is not None]
        if len(places) == 1 and node.next_functions[places[0]][0].name() == "LogSoftmaxBackward0":
            log_softmax = node.next_functions[places[0]][0]
            targets = saved(node, "other" if places[0] == 0 else "self")
            output = saved(log_softmax, "result")
            if targets is not None and output is not None and targets.shape == output.shape and output.ndim == 2:
                return LossGraph("cross_entropy", alone, _before(log_softmax), output, targets)
    return None


def _are_log_probabilities(output: Tensor) -> bool:
    """Whether (N, V, ...) or (V,) numbers are log-probabilities: their exponentials sum to 1 within 2 %."""
    total = output.double().exp().sum(min(output.ndim - 1, 1))
    return not bool(((total - 1).abs() > 0.02).any())


def _passed(node: Any) -> Any:
    """The first function before this one that changes numbers."""
    before = node.next_functions[0][0]
    while before is not None and before.name().startswith(SHAPING) and before.next_functions:
        before = before.next_functions[0][0]
    return before


def _before(node: Any) -> str | None:
    """The activation whose result the function gets. A softmax may have been stretched and shifted on its way, which
    leaves it one; others have another range then, as a soft cap of logits has.
    """
    before = node.next_functions[0][0]
    stretched = False
    while before is not None:
        name = before.name()
        parents = [each for each, _ in before.next_functions if each is not None]
        if name in ACTIVATION_NODES:
            return ACTIVATION_NODES[name] if not stretched or name == "SoftmaxBackward0" else None
        if len(parents) != 1 or not name.startswith((*SHAPING, *SCALING)):
            return None
        stretched |= not name.startswith(SHAPING)
        before = parents[0]
    return None


def saved(node: Any, name: str) -> Tensor | None:
    """An argument or result that autograd keeps for a function; None where it keeps none, or not as it was."""
    raw = getattr(node, f"_raw_saved_{name}", None)
    if getattr(raw, "unpack_hook", None) is not None:
        return None  # reading it would run a checkpointed network again
    found = getattr(node, f"_saved_{name}", None)
    return found.detach() if isinstance(found, torch.Tensor) else None
