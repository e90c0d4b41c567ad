"""Linear layers in a row: what lies between them, as autograd has noted it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from makemore_pl.doctor.loss_graph import SHAPING

SUMS = ("Add", "Sub", "Rsub", "Neg")
PRODUCTS = ("Mm", "Bmm", "UnsafeView")
"""Functions that are linear where one of their arguments is a constant. A factor may be none: relu by hand is one."""


@dataclass(frozen=True, slots=True)
class Row:
    """A linear layer, and what has become of its output without anything nonlinear."""

    layer: nn.Module
    between: tuple[Any, ...]
    """Autograd functions whose results lie between."""
    through_depthwise: bool = False


def lengthened(row: Row | None, module: nn.Module, given: Any, made: Any) -> Row:
    """The row that a linear layer's output is in: a depthwise convolution goes on with that of its input.

    Args:
        given: autograd function that made its input.
        made: the one that made its output.
    """
    depthwise = isinstance(module, _ConvNd) and module.groups == module.in_channels > 1
    if row is None or not depthwise or not isinstance(row.layer, _ConvNd):
        return Row(module, (made,))
    return Row(row.layer, (*row.between, given, made), through_depthwise=True)


def only_linear(row: Row, after: nn.Module) -> bool:
    """Whether two layers in a row can do no more than one. What may be meant is left out: a bottleneck between them,
    and a depthwise convolution with one of a single pixel, which are one convolution taken apart.
    """
    before = row.layer
    if isinstance(before, nn.Linear) and isinstance(after, nn.Linear):
        return before.out_features >= min(before.in_features, after.out_features)
    if isinstance(before, _ConvNd) and isinstance(after, _ConvNd):
        whole = row.through_depthwise or min(*before.kernel_size, *after.kernel_size) > 1
        return before.groups == after.groups == 1 and whole and before.out_channels >= before.in_channels
    return False


def readers_of(ends: list[Any]) -> Counter[Any]:
    """Autograd function -> how many functions that lead to `ends` have read its result."""
    counts: Counter[Any] = Counter()
    seen, queue = set(ends), list(set(ends))
    while queue:
        for each, _ in queue.pop().next_functions:
            counts[each] += 1
            if each is not None and each not in seen:
                seen.add(each)
                queue.append(each)
    counts[None] = 0
    return counts


def merged_pairs(
    given: Mapping[nn.Module, Any], returned: Mapping[Any, nn.Module], readers: Counter[Any]
) -> Iterable[tuple[nn.Module, nn.Module]]:
    """Linear layers that get nothing but sums of other ones' outputs, each used once, and products with constants.

    Args:
        given: linear layer -> autograd function that made its input.
        returned: autograd function -> the module whose output it made.
    """
    together = Counter(given.values())
    for after, merged in given.items():
        sources, between = _sources(merged, returned)
        alone = readers[merged] == together[merged] <= len(sources)
        if alone and all(readers[each] == 1 for each in between if each is not merged):
            rows = [Row(each, ()) for each in sources]
            yield from ((row.layer, after) for row in rows if only_linear(row, after))


def _sources(merged: Any, returned: Mapping[Any, nn.Module]) -> tuple[set[nn.Module], set[Any]]:
    """Linear layers of whose outputs it is a linear function, and the functions between; none where it is also made of
    anything else.
    """
    sources: set[nn.Module] = set()
    between: set[Any] = set()
    queue = [merged]
    while queue:
        node = queue.pop()
        between.add(node)
        if node in returned:
            if not isinstance(returned[node], nn.Linear):
                return set(), set()
            sources.add(returned[node])
            continue
        parents = [each for each, _ in node.next_functions if each is not None]
        shaped = node.name().startswith((*SHAPING, *PRODUCTS)) and len(parents) == 1
        if not parents or not (shaped or node.name().startswith(SUMS)):
            return set(), set()
        queue += parents
    return sources, between
