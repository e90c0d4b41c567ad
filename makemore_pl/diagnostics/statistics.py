"""Statistics of activations, gradients, parameters and BatchNorm: pure functions of tensors.

Every function but `units_first` returns a 0-d float32 tensor on the device of its input and never waits for that
device, so that a caller can stack all of a step's numbers and fetch them in one transfer. Call them under `no_grad`.

Four rules hold for all functions. If there is nothing to measure, the result is nan, without exception or warning. If
the input has a NaN, the result is nan, also for shares. Half precision is converted to float32 before anything is
summed. A complex number counts as two numbers, so that norms are the same as torch's; comparisons take its absolute
value.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

SATURATED = 0.97
"""An activation is saturated if |tanh| is greater (the lecture): then tanh passes on less than 6 % of its gradient."""

LINEAR = 0.8
"""tanh counts as linear if |preactivation| is less (our choice): then it passes on more than 55 % of its gradient."""


def mean(x: Tensor) -> Tensor:
    """Mean of all elements, any shape; nan when empty."""
    return _widen(x).mean().float()


def std(x: Tensor) -> Tensor:
    """Unbiased standard deviation (torch's default, as in the lecture) of all elements, any shape.

    Exactly 0 for constant data; nan for fewer than two elements and where an element is infinite.
    """
    if x.numel() < 2:
        return _nan(x)
    x = _widen(x)
    # By rounding, x.std() of constant data is about 1e-8, and a ratio to that looks like a number. Subtracting the
    # first element makes constant data exactly 0.
    return (x - x[(0,) * x.ndim]).std().float()


def rms(x: Tensor) -> Tensor:
    """Root mean square of all elements, any shape; nan when empty."""
    return _widen(x).square().mean().sqrt().float()


def units_first(activation: Tensor, axis: int = -1) -> Tensor:
    """Activations as (units, examples), of any dtype; a view where the strides allow.

    axis: the dimension that holds the units: 1 for (N, n), (N, C, L) and (N, C, H, W), 2 for (N, T, n). Each position
    in the other dimensions is an example. If there is no other dimension, as in (n,), each unit has one example.
    """
    if activation.ndim < 2:
        return activation.reshape(-1, 1)
    return activation.movedim(axis, 0).flatten(1)


def saturation(activation: Tensor, threshold: float = SATURATED) -> Tensor:
    """Share, 0 to 1, of tanh outputs of any shape with |activation| > threshold; nan when empty.

    It has no meaning for an unbounded activation such as ReLU; see `zero_share` for that. ValueError unless
    0 < threshold < 1.
    """
    _check(threshold)
    return _share(_magnitude(activation) > threshold, activation)


def gaussian_saturation(preactivation_std: Tensor, threshold: float = SATURATED) -> Tensor:
    """Saturation of tanh on a centred Gaussian of this std (0-d): erfc(atanh(threshold) / (std * sqrt 2)).

    0 for std 0. At std 1 it is 3.6 %, at 5/3 20.9 %. ValueError unless 0 < threshold < 1.
    """
    _check(threshold)
    return torch.erfc(math.atanh(threshold) / math.sqrt(2) / _widen(preactivation_std)).float()


def saturation_excess(activation: Tensor, preactivation_std: Tensor, threshold: float = SATURATED) -> Tensor:
    """`saturation` minus `gaussian_saturation`, -1 to 1.

    If it is near 0, the saturation is explained by the spread of the preactivations, so by the gain. If not, these are
    not Gaussian. It is positive if more of them than of a Gaussian's lie just beyond the threshold. It is negative if a
    few lie far beyond it, as with a few `dead_units`, because these raise the std more than the share.
    `preactivation_std` is the `std` of the tanh's input, 0-d.
    """
    return saturation(activation, threshold) - gaussian_saturation(preactivation_std, threshold)


def linear_share(preactivation: Tensor, bound: float = LINEAR) -> Tensor:
    """Share, 0 to 1, of preactivations of any shape inside the open interval (-bound, bound); nan when empty."""
    return _share(_magnitude(preactivation) < bound, preactivation)


def zero_share(activation: Tensor) -> Tensor:
    """Share, 0 to 1, of activations of any shape that are exactly 0, as ReLU makes them; nan when empty."""
    return _share(activation == 0, activation)


def dead_units(activation: Tensor, threshold: float = SATURATED, axis: int = -1) -> Tensor:
    """Share, 0 to 1, of tanh units saturated on every example: the white columns of the lecture's picture.

    No example gives such a unit a gradient to learn from. Shapes and axis are as in `units_first`; nan without units or
    examples. With few examples a unit can be dead by chance; with one example every saturated unit is.
    ValueError unless 0 < threshold < 1.
    """
    _check(threshold)
    return _share((_magnitude(units_first(activation, axis)) > threshold).all(1), activation)


def stuck_units(activation: Tensor, tolerance: float = 1e-5, axis: int = -1) -> Tensor:
    """Share, 0 to 1, of units stuck at zero: |activation| < tolerance on at least 95 % of the examples.

    It is for ReLU, whose dead units are at zero, and for tanh. The 95 % and 1e-5 are TheDeepChecker's. Shapes and axis
    are as in `units_first`; nan without units or examples.
    """
    near_zero = _magnitude(units_first(activation, axis)) < tolerance
    examples = near_zero.size(1)
    return _share(near_zero.sum(1) >= examples - examples // 20, activation)


def grad_data_ratio(grad: Tensor, data: Tensor) -> Tensor:
    """std(grad) / std(data) of a parameter and its gradient (the lecture), any shape; nan when data is constant."""
    return _ratio(std(grad), std(data))


def update_data_ratio(update: Tensor, data: Tensor) -> Tensor:
    """log10 of the size of an optimizer step relative to the parameter it changed, in decades.

    `update` is the parameter after the step minus before it, so momentum, weight decay, Adam and clipping all count.
    (The lecture takes lr * grad.) `data` is the parameter after the step, as in the lecture.

    For two or more dimensions it is std(update) / std(data). For vectors and scalars it is rms(update) / max(rms(data),
    1), because BatchNorm's weight starts as all ones and its bias as all zeros, so their std is 0.

    -inf when the update is zero (a skipped step); nan when a matrix is constant.
    """
    if data.ndim < 2:
        return torch.log10(rms(update) / rms(data).clamp(min=1))
    return torch.log10(_ratio(std(update), std(data)))


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all elements of all tensors, as gradient clipping takes it; 0 when there are none.

    It is inf or nan if one element is. The result is on the device of the first tensor.
    """
    return torch.nn.utils.get_total_norm([_widen(tensor) for tensor in tensors]).float()


def not_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Count of NaN and infinite elements of all tensors, on the device of the first; exact up to 2**24."""
    # x - x is 0 if x is finite and nan if not; this takes a quarter of the time of isfinite()
    counts = [torch.count_nonzero(x - x) for x in tensors]
    return torch.stack([count.to(counts[0].device) for count in counts]).sum().float() if counts else torch.zeros(())


class BatchStatistics(NamedTuple):
    """The statistics that BatchNorm normalises a batch by, and how exact they are."""

    mean: Tensor
    """(C,)"""
    var: Tensor
    """(C,), biased, as BatchNorm normalises by it"""
    n: int
    """values per channel"""
    n_of_mean: int | Tensor
    """the mean is as exact as that of this many independent values per channel; n for (N, C)"""
    n_of_var: int | Tensor
    """the same for the variance"""


def batch_statistics(x: Tensor) -> BatchStatistics:
    """Batch statistics of BatchNorm's input (N, C) or (N, C, ...), whose positions within an image are not independent.

    The images are independent. So the variance of the images' means, divided by N, is the variance of the batch's mean,
    and it tells how exact that is. For white noise it is as exact as the mean of n independent values; if all pixels of
    an image are equal, as that of N values. The same holds for the variance. Both are pooled over the channels; nan for
    one image.
    """
    x = _widen(x)
    images, n = len(x), x.numel() // max(x.size(1), 1)
    if n == images:
        var, mean = torch.var_mean(x, [dim for dim in range(x.ndim) if dim != 1], correction=0)
        return BatchStatistics(mean, var, n, n, n)
    image_vars, image_means = torch.var_mean(x.flatten(2), 2, correction=0)
    mean = image_means.mean(0)
    squares = image_vars + (image_means - mean).square()  # each image's mean square about the mean of the batch
    var = squares.mean(0)
    if images < 2:
        return BatchStatistics(mean, var, n, _nan(var), _nan(var))
    spread, spread_of_squares = (y.var(0) / images for y in (image_means, squares))
    # n values of a Gaussian: the variance of their mean is var / n, that of their variance is 2 var**2 / (n - 1)
    n_of_mean = 1 / _mean_where(var != 0, spread / var)
    n_of_var = 1 + 2 / _mean_where(var != 0, spread_of_squares / var.square())
    return BatchStatistics(mean, var, n, n_of_mean, n_of_var)


def mean_lag(batch_mean: Tensor, running_mean: Tensor, running_var: Tensor, n: int | Tensor) -> Tensor:
    """How far BatchNorm's running mean is from a batch's, in standard errors: root mean square over the channels.

    sqrt(n) * rms(|batch_mean - running_mean| / sqrt(running_var)), with tensors (C,) and n independent values per
    channel in the batch. It is close to 1 if the two differ only by the noise of drawing the batch, and larger if the
    running mean lags behind. Channels with a running variance of 0 are left out; nan if no channel is left.
    """
    batch_mean, running_mean, running_var = _widen(batch_mean), _widen(running_mean), _widen(running_var)
    z = (batch_mean - running_mean) / running_var.sqrt()
    root = n.sqrt() if isinstance(n, Tensor) else math.sqrt(n)
    return (root * _rms_where(running_var != 0, z)).float()


def var_lag(batch_var: Tensor, running_var: Tensor, n: int, independent: int | Tensor | None = None) -> Tensor:
    """How far BatchNorm's running variance is from a batch's, in units of what the draw of a batch explains.

    It is the root mean square over the channels of ln(batch_var / running_var), divided by the same for Gaussian values
    and a perfect running variance. So it is close to 1 unless the running variance lags behind. Tensors are (C,). There
    are n values per channel in the batch, as exact as `independent` independent ones (by default n). `batch_var` is
    biased, as BatchNorm normalises by it; it is made unbiased here, as PyTorch does for the running variance. Channels
    in which either variance is zero are left out; nan if no channel is left, or n < 2.
    """
    if n < 2:
        return _nan(running_var)
    batch_var, running_var = _widen(batch_var), _widen(running_var)
    log_ratio = torch.log(batch_var * (n / (n - 1)) / running_var)
    # The log of chi2_k / k has variance trigamma(k / 2), which is about 2 / k for large k, and mean digamma(k / 2) -
    # ln(k / 2). With sqrt(2 / k) alone the healthy value would be 1.27 at n = 4 and 1.11 at n = 8.
    half = running_var.new_ones(()) * ((n if independent is None else independent) - 1) / 2
    null = (torch.polygamma(1, half) + (torch.digamma(half) - half.log()).square()).sqrt()
    return (_rms_where((batch_var != 0) & (running_var != 0), log_ratio) / null).float()


def _widen(x: Tensor) -> Tensor:
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return x if x.dtype == torch.float64 else x.float()


def _magnitude(x: Tensor) -> Tensor:
    return _widen(x.abs() if x.is_complex() else x).abs()


def _nan(like: Tensor) -> Tensor:
    return like.new_full((), math.nan, dtype=torch.float32)


def _share(hits: Tensor, values: Tensor) -> Tensor:
    """Share of `hits` that are True; nan if `values` are empty or have a NaN, which comparisons would hide."""
    if values.numel() == 0:
        return _nan(values)
    largest = _widen(values).amax()  # nan where any is, in a tenth of the time of isnan().any()
    return torch.where(largest.isnan(), math.nan, torch.count_nonzero(hits) / hits.numel()).float()


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator == 0, math.nan, numerator / denominator)


def _rms_where(measured: Tensor, z: Tensor) -> Tensor:
    # indexing with the mask would wait for the device; if no channel is measured, 0 / 0 gives nan
    return (torch.where(measured, z, 0).square().sum() / measured.sum()).sqrt().float()


def _mean_where(measured: Tensor, x: Tensor) -> Tensor:
    return torch.where(measured, x, 0).sum() / measured.sum()


def _check(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, the range of |tanh|, not {threshold}")
