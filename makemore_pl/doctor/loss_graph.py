"""Reads the autograd graph of a loss: which loss it is, what its arguments are, and which function comes before it.

Autograd keeps the functions that made a loss, and some of these keep their arguments. No function is run again here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KINDS = {
    "NllLossBackward0": "nll",
    "NllLoss2DBackward0": "nll",
    "MseLossBackward0": "mse",
    "HuberLossBackward0": "l1",
    "SmoothL1LossBackward0": "l1",
    "BinaryCrossEntropyBackward0": "likelihood",
    "BinaryCrossEntropyWithLogitsBackward0": "bce",
}
ACTIVATIONS = {
    "SoftmaxBackward0": "softmax",
    "LogSoftmaxBackward0": "log_softmax",
    "LogBackward0": "logarithm",
    "SigmoidBackward0": "sigmoid",
    "TanhBackward0": "tanh",
    "ReluBackward0": "relu",
}
SHAPING = (
    "View", "Reshape", "UnsafeView", "Unsqueeze", "Squeeze", "Transpose", "T", "Permute", "Select", "Slice", "Clone",
    "ToCopy", "Alias", "Index", "Contiguous", "Flatten", "Expand",
)  # fmt: skip
"""Functions that change the shape and no number."""
SUM = 2
"""torch's code for reduction='sum'."""
MEAN = 1
"""torch's code for reduction='mean'."""


@dataclass(frozen=True, slots=True)
class LossGraph:
    """The loss function nearest to the number that is minimized, and its arguments."""

    kind: str
    """cross_entropy, nll, bce (on logits), likelihood (a binary cross-entropy on probabilities), mse or l1."""
    alone: bool
    """Whether exactly this loss is minimized, without factors and other terms."""
    is_sum: bool
    activation: str | None
    """The function just before the loss: softmax, sigmoid, tanh or relu."""
    output: Tensor | None
    """The argument of the loss, for a cross-entropy (N, V) log-probabilities; None if torch does not keep it."""
    targets: Tensor | None
    weight: Tensor | None = None
    """(V,) weights of the classes of a cross-entropy."""
    ignored: int | None = None
    """The class index that a cross-entropy ignores among the targets."""


def read_loss(loss: Tensor) -> LossGraph | None:
    """The loss function that made this loss; None if no known one is found."""
    alone, is_sum = True, False
    queue: list[tuple[Any, bool, bool]] = [(loss.grad_fn, True, False)] if loss.grad_fn else []
    for _ in range(64):
        if not queue:
            return None
        node, alone, is_sum = queue.pop(0)
        name = node.name()
        if name in KINDS:
            return _known(node, alone and not queue, is_sum)
        if name.startswith("Pow") and (by_hand := _difference(node)):
            return LossGraph("mse", alone and not queue, is_sum, _before(by_hand), _saved(node, "self"), None)
        if name.startswith("Abs") and (by_hand := _difference(node)):
            return LossGraph("l1", alone and not queue, is_sum, _before(by_hand), _saved(node, "self"), None)
        plain = name.startswith(("Div", "Mean", "Sum", *SHAPING))  # Lightning divides by accumulate_grad_batches
        is_sum |= name == "SumBackward0"
        if name.startswith("Mean"):
            is_sum = False
        queue += [(each, alone and plain, is_sum) for each, _ in node.next_functions if each is not None]
    return None


def _known(node: Any, alone: bool, is_sum: bool) -> LossGraph:
    kind, before = KINDS[node.name()], _before(node)
    is_sum |= node._saved_reduction == SUM
    output, targets, weight = (_saved(node, name) for name in ("self", "target", "weight"))
    if kind != "nll":
        alone = alone and weight is None and _saved(node, "pos_weight") is None
        return LossGraph(kind, alone, is_sum, before, output, targets)
    ignored = node._saved_ignore_index
    ignored -= 2**64 if ignored >= 2**63 else 0  # torch gives a negative number as an unsigned one
    if weight is not None or (targets is not None and bool((targets == ignored).any())):
        alone = alone and node._saved_reduction == MEAN  # the mean divides by the sum of the weights
    if before == "log_softmax":
        kind, before = "cross_entropy", _before(_passed(node))
        if before == "log_softmax":  # a second log_softmax changes nothing
            before = None
    elif before == "logarithm" or (output is not None and _are_log_probabilities(output)):  # a hand-written log_softmax
        kind, before = "cross_entropy", None
    return LossGraph(kind, alone, is_sum, before, output, targets, weight, ignored)


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
    before = _passed(node)
    return ACTIVATIONS.get(before.name()) if before is not None else None


def _difference(node: Any) -> Any:
    before = _passed(node)
    return before if before is not None and before.name().startswith(("Sub", "Rsub")) else None


def _saved(node: Any, name: str) -> Tensor | None:
    raw = getattr(node, f"_raw_saved_{name}", None)
    if getattr(raw, "unpack_hook", None) is not None:
        return None  # reading it would run a checkpointed network again
    found = getattr(node, f"_saved_{name}", None)
    return found.detach() if isinstance(found, torch.Tensor) else None
