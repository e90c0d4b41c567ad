"""Which dimension of an activation holds the units. The layer before it tells; the number of dimensions does not."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

LAST: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase,
)  # fmt: skip
"""Layers whose units lie in the last dimension of what they return."""
KNOWN = (*LAST, _ConvNd, _BatchNorm, _InstanceNorm, nn.GroupNorm)


def unit_axis_of(layer: nn.Module, output: Tensor) -> int | None:
    """The dimension in which a layer of a KNOWN type has its units; None for other types."""
    if isinstance(layer, LAST):
        return output.ndim - 1
    if isinstance(layer, _ConvNd):
        return output.ndim - 1 - len(layer.kernel_size)  # with or without a batch dimension
    if isinstance(layer, _InstanceNorm):
        return output.ndim - 1 - int(type(layer).__name__.rstrip("d")[-1])
    return 1 if isinstance(layer, (_BatchNorm, nn.GroupNorm)) and output.ndim > 1 else None
