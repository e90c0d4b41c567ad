"""Finds activation functions in the autograd graph of a loss, where those that are no modules have left their results.

Autograd keeps the result of relu, tanh and sigmoid and the argument of the others. Nothing is computed here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from makemore_pl.doctor.loss_graph import SCALING, SHAPING, saved

KINDS = {
    "ReluBackward0": "relu",
    "ClampMinBackward0": "relu",
    "ClampBackward1": "relu",
    "TanhBackward0": "tanh",
    "SigmoidBackward0": "sigmoid",
    **{f"{name}Backward0": "other" for name in ("Gelu", "Silu", "Elu", "Celu", "LeakyRelu", "Mish", "Softplus")},
    **{f"{name}Backward0": "other" for name in ("Hardtanh", "Hardswish", "PreluKernel")},
}
LAYERS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Linear", "MkldnnLinear", "Convolution")
"""Functions that multiply by weights."""
NORMALISATIONS = ("NativeBatchNorm", "CudnnBatchNorm", "NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm")
MOST = 20_000
"""A graph of more functions than this is not searched."""


@dataclass(frozen=True, slots=True)
class ActivationFunction:
    """One call of an activation function in front of a layer."""

    node: Any
    """The autograd function; its gradient is that by the activations."""
    kind: str
    """relu, tanh, sigmoid or other."""
    result: Tensor | None
    """The activations, or for other kinds what goes into the function; None where autograd does not keep it."""
    unit_axis: int | None
    """The dimension of it that holds the units; None where the layer before does not tell."""
    normalised: bool
    """Whether a normalisation is right before it."""
    module: nn.Module | None
    """The nearest module before it that has returned what goes into it."""


def activation_functions(loss: Tensor, returned: Mapping[Any, nn.Module]) -> list[ActivationFunction]:
    """In the order of the forward pass. One after which no layer comes is left out: it is the output's, or the loss's.
    So is one whose result is multiplied by another: it is a gate, which may well be closed.

    Args:
        returned: autograd function -> the module whose output it made.
    """
    found: dict[Any, None] = {}
    gates: set[Any] = set()
    seen: set[tuple[Any, bool]] = set()
    queue: list[tuple[Any, bool]] = [(loss.grad_fn, False)] if loss.grad_fn is not None else []
    while queue:
        node, before_layer = queue.pop()
        if (node, before_layer) in seen or (node, True) in seen:
            continue
        seen.add((node, before_layer))
        if len(seen) > MOST:
            return []
        name = node.name()
        if before_layer and name in KINDS:
            found.setdefault(node)
        parents = _parents(node)
        if name.startswith("MulBackward") and len(parents) == 2:
            gates.update(_unshaped(each) for each in parents)
        queue += [(each, before_layer or name.startswith(LAYERS)) for each in parents]
    nodes = sorted((each for each in found if each not in gates), key=place_of)
    return [_described(node, returned) for node in nodes]


def has_way_around(loss: Tensor) -> bool:
    """Whether ways through different numbers of layers join in front of a layer, as behind a skip connection."""
    before_layer: dict[Any, bool] = {}
    queue: list[tuple[Any, bool]] = [(loss.grad_fn, False)] if loss.grad_fn is not None else []
    while queue:
        node, before = queue.pop()
        if node.name().startswith("AccumulateGrad") or before_layer.get(node, -1) >= before:
            continue
        before_layer[node] = before
        if len(before_layer) > MOST:
            return False
        queue += [(each, before or node.name().startswith(LAYERS)) for each in _parents(node)]
    lengths: dict[Any, tuple[int, int]] = {}
    """Function -> layers on the shortest and the longest way to it; parameters and what is made of them have none."""
    for node in sorted(before_layer, key=place_of):
        found = [lengths[each] for each in _parents(node) if each in lengths]
        layer = node.name().startswith(LAYERS)
        if not found and not layer and not node.name().startswith("Embedding"):
            continue
        shortest, longest = min((a for a, _ in found), default=0), max((b for _, b in found), default=0)
        if shortest < longest and before_layer[node]:
            return True
        lengths[node] = shortest + layer, longest + layer
    return False


def dropout_function(loss: Tensor) -> float:
    """The largest share of numbers that a dropout drops, 0 without one: a product with zeros and equal other numbers,
    whose mean is near 1.
    """
    most, seen = 0.0, set[Any]()
    queue: list[Any] = [loss.grad_fn] if loss.grad_fn is not None else []
    while queue and len(seen) < MOST:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        parents = _parents(node)
        queue += parents
        if node.name() == "NativeDropoutBackward0":
            most = max(most, float(node._saved_p))
        elif node.name() == "MulBackward0" and len(parents) == 1:
            mask = next((x for name in ("other", "self") if (x := saved(node, name)) is not None), None)
            if mask is not None and mask.is_floating_point() and mask.numel() >= 64:
                most = max(most, _dropped(mask))
    return most


def _dropped(mask: Tensor) -> float:
    kept = mask[mask != 0]
    if len(kept) in (0, mask.numel()) or bool((kept != kept[0]).any()) or float(kept[0]) <= 1:
        return 0.0
    share = 1 - 1 / float(kept[0])
    return share if abs(1 - len(kept) / mask.numel() - share) < 0.15 else 0.0


def place_of(node: Any) -> int:
    """Of a function in the forward pass, as autograd counts."""
    return int(node._sequence_nr())


def _described(node: Any, returned: Mapping[Any, nn.Module]) -> ActivationFunction:
    kind = KINDS[node.name()]
    result = saved(node, "result")
    if result is None and (result := saved(node, "self")) is not None and kind == "relu":
        result = result.clamp(min=0)
    layer = next((each for each in _before(node) if each.name().startswith((*LAYERS, *NORMALISATIONS))), None)
    direct = _unshaped(node.next_functions[0][0])
    return ActivationFunction(
        node,
        kind,
        result,
        _unit_axis(layer, result),
        direct is not None and direct.name().startswith(NORMALISATIONS),
        next((returned[each] for each in _before(node) if each in returned), None),
    )


def _unit_axis(layer: Any, result: Tensor | None) -> int | None:
    if layer is None or result is None or result.ndim < 2:
        return None
    channels = layer.name().startswith(("Convolution", "NativeBatchNorm", "CudnnBatchNorm", "NativeGroupNorm"))
    return 1 if channels else result.ndim - 1


def _before(node: Any) -> Iterator[Any]:
    """The functions before it, the nearest first, for a few steps: through a residual sum, for instance."""
    queue, steps = _parents(node), 0
    while queue and steps < 8:
        each = queue.pop(0)
        yield each
        queue += _parents(each)
        steps += 1


def _unshaped(node: Any) -> Any:
    """The nearest function from here on back that does more than to change the shape or to shift and stretch."""
    while node is not None and node.name().startswith((*SHAPING, *SCALING)):
        parents = _parents(node)
        if len(parents) != 1:
            break
        node = parents[0]
    return node


def _parents(node: Any) -> list[Any]:
    return [each for each, _ in node.next_functions if each is not None]
