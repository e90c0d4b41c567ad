"""Run alone: pytest tests/test_statistics.py"""

import ast
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from makemore_pl.diagnostics import statistics

settings.register_profile("statistics", deadline=None)  # the first call of a torch operation may take long
settings.load_profile("statistics")

NAN, INF = math.nan, math.inf

ON_ONE_TENSOR: list[Callable[[Tensor], Tensor]] = [
    statistics.mean,
    statistics.std,
    statistics.rms,
    statistics.saturation,
    statistics.linear_share,
    statistics.zero_share,
    statistics.dead_units,
    statistics.stuck_units,
    statistics.gaussian_saturation,
]
SHARES: list[Callable[[Tensor], Tensor]] = [statistics.saturation, statistics.linear_share, statistics.zero_share]
UNIT_SHARES: list[Callable[[Tensor], Tensor]] = [statistics.dead_units, statistics.stuck_units]


def tensor(*values: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def same(got: Tensor, expected: float) -> bool:
    """Equal after rounding to float32, which is what every statistic returns; nan equals nan."""
    return torch.equal(got.nan_to_num(1e30), torch.tensor(expected).nan_to_num(1e30))


# Values on a grid of 1/8: exact in float32, far from the bounds, many ties and zeros.
grid = st.integers(-16, 16).map(lambda i: i / 8)
matrices = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.lists(grid, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda values: torch.tensor(values).reshape(shape)
    )
)


class TestAll:
    def test_every_public_function_is_tested_here(self) -> None:
        public = {
            name
            for name, function in vars(statistics).items()
            if inspect.isfunction(function) and function.__module__ == statistics.__name__ and name[0] != "_"
        }
        tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}  # a comment is no node
        assert public
        assert public - used == set()

    def test_all_come_back_in_one_stack(self) -> None:
        x, y, channels = torch.randn(6, 4), torch.randn(6, 4, dtype=torch.float64), torch.rand(4) + 1
        for a, b in [(x, y), (x.half(), x.bfloat16()), (x[:0], y[:0])]:
            found = [function(a) for function in ON_ONE_TENSOR[:-1]]
            found += [statistics.gaussian_saturation(y.std()), statistics.saturation_excess(a, y.std())]
            found += [statistics.grad_data_ratio(a, b), statistics.update_data_ratio(a, b)]
            found += [statistics.global_norm([a, b]), statistics.not_finite([a, b])]
            found += [statistics.mean_lag(channels.double(), channels, channels, 6)]
            found += [statistics.var_lag(channels.double(), channels, 6), statistics.var_lag(channels, channels, 1)]
            assert {(number.dtype, number.shape) for number in found} == {(torch.float32, torch.Size([]))}

    def test_none_reads_a_value_back_to_the_host(self) -> None:
        # Tensors on the meta device have no values: .item(), indexing with a mask and `if tensor` all raise.
        x, channels, scalar = (torch.empty(shape, device="meta") for shape in [(8, 5), (5,), ()])
        found = [function(x) for function in ON_ONE_TENSOR[:-1]]
        found += [statistics.gaussian_saturation(scalar), statistics.saturation_excess(x, scalar)]
        found += [statistics.grad_data_ratio(x, x), statistics.update_data_ratio(x, x)]
        found += [statistics.update_data_ratio(channels, channels)]
        found += [statistics.global_norm([x, channels]), statistics.not_finite([x, channels])]
        found += [statistics.mean_lag(channels, channels, channels, 8), statistics.var_lag(channels, channels, 8)]
        assert torch.stack(found).shape == (len(found),)

    @pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 3, 2, 2), (2, 0, 2, 2)])
    def test_nothing_to_measure_is_nan(self, shape: tuple[int, ...]) -> None:
        x = torch.empty(shape)
        for function in ON_ONE_TENSOR[:-1]:
            assert same(function(x), NAN), function
        assert same(statistics.saturation_excess(x, torch.tensor(1.0)), NAN)
        assert same(statistics.grad_data_ratio(x, x), NAN)
        assert same(statistics.update_data_ratio(x, x), NAN)

    def test_one_nan_makes_nan(self) -> None:
        x, sound = torch.tensor([[1.0, 0.0], [NAN, 0.5]]), torch.tensor([[1.0, 0.0], [0.0, 0.5]])
        for function in ON_ONE_TENSOR[:-1]:
            assert same(function(x), NAN), function
        assert same(statistics.gaussian_saturation(torch.tensor(NAN)), NAN)
        for got in (
            statistics.saturation_excess(x, torch.tensor(1.0)),
            statistics.saturation_excess(sound, torch.tensor(NAN)),
            statistics.grad_data_ratio(x, sound),
            statistics.grad_data_ratio(sound, x),
            statistics.update_data_ratio(x, sound),
            statistics.update_data_ratio(sound, x),
            statistics.update_data_ratio(x[:, 0], sound[:, 0]),
            statistics.update_data_ratio(sound[:, 0], x[:, 0]),
            statistics.global_norm([sound, x]),
            statistics.mean_lag(x[:, 0], sound[:, 0], torch.ones(2), 8),
            statistics.mean_lag(sound[:, 0], sound[:, 0], tensor(1, NAN), 8),
            statistics.var_lag(torch.ones(2), tensor(1, NAN), 8),
            statistics.var_lag(tensor(1, NAN), torch.ones(2), 8),
        ):
            assert same(got, NAN)

    def test_half_precision_is_summed_in_float32(self) -> None:
        # In float16 the sum of squares overflows at 65,504, and 1 - 2**-12 rounds to 1.
        x = torch.full((200, 10), 100.0, dtype=torch.float16)
        assert same(statistics.rms(x), 100)
        assert same(statistics.mean(x), 100)
        assert same(statistics.std(x), 0)
        assert same(statistics.global_norm([x]), math.sqrt(2000) * 100)


class TestMoments:
    def test_exact(self) -> None:
        x = tensor(2, 4, 4, 4, 5, 5, 7, 9)  # sum of squared deviations 32
        assert same(statistics.mean(x), 5)
        assert same(statistics.std(x), math.sqrt(32 / 7))
        assert same(statistics.rms(x), math.sqrt(232 / 8))
        assert torch.equal(statistics.std(x), x.std())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("n", [2, 3, 7, 100, 6000])
    @pytest.mark.parametrize("value", [0.0, 0.1, 0.7, -3.3])
    def test_constant_data_has_std_0_exactly(self, value: float, n: int, dtype: torch.dtype) -> None:
        # Tensor.std() gives up to 5e-7 here: rounding, which as a denominator would make a ratio of any size.
        for x in (torch.full((n,), value, dtype=dtype), torch.full((3, n), value, dtype=dtype).T):
            assert same(statistics.std(x), 0)

    @pytest.mark.parametrize(("offset", "first"), [(0.0, 0.0), (0.0, 1e3), (1e4, 1e4)])
    def test_std_is_accurate_wherever_the_first_element_lies(self, offset: float, first: float) -> None:
        x = offset + torch.randn(6000, generator=torch.Generator().manual_seed(8))
        x[0] = first
        # Differences to the first element round by 2**-24 of at most sqrt(n) standard deviations, in all directions.
        assert float(statistics.std(x)) == pytest.approx(float(x.double().std()), rel=5e-7)

    def test_one_element_has_no_std(self) -> None:
        assert same(statistics.std(tensor(3)), NAN)
        assert same(statistics.std(torch.tensor(3.0)), NAN)

    def test_infinity(self) -> None:
        assert same(statistics.mean(tensor(1, INF)), INF)
        assert same(statistics.rms(tensor(1, -INF)), INF)
        assert same(statistics.std(tensor(1, INF)), NAN)
        assert same(statistics.std(tensor(INF, INF)), NAN)

    @given(matrices, st.sampled_from([0.25, 2.0, -8.0]))
    def test_scale_with_their_data(self, x: Tensor, factor: float) -> None:
        # Factors are powers of two: scaling commutes with rounding and equality is exact.
        assert same(statistics.mean(factor * x), factor * float(statistics.mean(x)))
        assert same(statistics.std(factor * x), abs(factor) * float(statistics.std(x)))
        assert same(statistics.rms(factor * x), abs(factor) * float(statistics.rms(x)))

    @given(matrices.filter(lambda x: x.numel() > 1))
    def test_rms_is_mean_and_std_together(self, x: Tensor) -> None:
        n = x.numel()
        mean, std, rms = (float(f(x)) for f in (statistics.mean, statistics.std, statistics.rms))
        # Three float32 results of a few roundings each; |x| <= 2.
        assert rms**2 == pytest.approx(mean**2 + std**2 * (n - 1) / n, abs=4e-6)


class TestUnitsFirst:
    def test_units_are_the_last_dimension(self) -> None:
        x = torch.arange(6.0).reshape(3, 2)
        assert statistics.units_first(x).tolist() == [[0, 2, 4], [1, 3, 5]]
        x = torch.arange(8.0).reshape(2, 2, 2)
        assert statistics.units_first(x).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]

    def test_units_are_channels_of_a_convolution(self) -> None:
        x = torch.arange(8.0).reshape(2, 2, 1, 2)
        assert statistics.units_first(x, 1).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
        assert statistics.units_first(torch.empty(5, 3, 4, 2, 2), 1).shape == (3, 80)
        assert statistics.units_first(torch.empty(5, 3, 7), 1).shape == (3, 35)

    def test_without_a_batch_there_is_one_example(self) -> None:
        assert statistics.units_first(torch.arange(3.0)).tolist() == [[0], [1], [2]]
        assert statistics.units_first(torch.tensor(1.0)).tolist() == [[1]]

    def test_a_matrix_is_not_copied(self) -> None:
        x = torch.randn(4, 3)
        assert statistics.units_first(x).data_ptr() == x.data_ptr()


class TestSaturation:
    def test_exact(self) -> None:
        x = tensor(0.98, -0.98, 0.96, 0, 1, -1, 0.5, -0.5)
        assert same(statistics.saturation(x), 4 / 8)
        assert same(statistics.saturation(x, threshold=0.99), 2 / 8)
        assert same(statistics.saturation(x.reshape(2, 2, 2)), 4 / 8)

    def test_the_bound_itself_is_not_saturated(self) -> None:
        bound = torch.tensor(0.97)
        assert same(statistics.saturation(torch.stack([bound, torch.nextafter(bound, torch.tensor(1.0))])), 1 / 2)

    def test_infinity_is_saturated(self) -> None:
        assert same(statistics.saturation(tensor(INF, -INF, 0, 0)), 1 / 2)

    @pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 1.5, NAN])
    def test_threshold_outside_the_range_of_tanh(self, threshold: float) -> None:
        x, one = torch.zeros(2, 2), torch.tensor(1.0)
        calls: list[Callable[[], Tensor]] = [
            lambda: statistics.saturation(x, threshold),
            lambda: statistics.gaussian_saturation(one, threshold),
            lambda: statistics.saturation_excess(x, one, threshold),
            lambda: statistics.dead_units(x, threshold),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=r"threshold must lie between 0 and 1, .* not "):
                call()

    @given(st.floats(0.01, 100), st.floats(0.05, 0.999))
    def test_gaussian_is_the_two_tails_of_mpmaths(self, std: float, threshold: float) -> None:
        got = float(statistics.gaussian_saturation(torch.tensor(std, dtype=torch.float64), threshold))
        # Computed in float64 and rounded once to float32; below 1e-38 float32 has no full precision.
        assert got == pytest.approx(float(2 * mpmath.ncdf(-math.atanh(threshold) / std)), rel=1e-6, abs=1e-38)
        in_float32 = float(statistics.gaussian_saturation(torch.tensor(std), threshold))
        # erfc's argument z carries float32 rounding, which the tail e^(-z^2) magnifies by 2 z^2.
        z = math.atanh(threshold) / std / math.sqrt(2)
        expected = float(mpmath.erfc(z))
        assert in_float32 == pytest.approx(expected, rel=1e-6 * (1 + 2 * z * z), abs=1e-37)

    def test_gaussian_published_values(self) -> None:
        for std, percent in [(1.0, 3.6), (5 / 3, 20.9), (3.0, 48.6)]:
            assert 100 * float(statistics.gaussian_saturation(torch.tensor(std))) == pytest.approx(percent, abs=0.06)

    def test_gaussian_at_the_ends(self) -> None:
        assert same(statistics.gaussian_saturation(torch.tensor(0.0)), 0)
        assert same(statistics.gaussian_saturation(torch.tensor(INF)), 1)

    def test_gaussian_preactivations_have_no_excess(self) -> None:
        generator = torch.Generator().manual_seed(1)
        for gain in (1.0, 5 / 3, 3.0):
            a = gain * torch.randn(100_000, generator=generator)
            p = float(statistics.gaussian_saturation(statistics.std(a)))
            excess = float(statistics.saturation_excess(a.tanh(), statistics.std(a)))
            assert abs(excess) < 4 * math.sqrt(p * (1 - p) / 100_000)  # four standard errors of a share

    def test_excess_exact(self) -> None:
        x = tensor(1, 1, 0, 0)
        assert same(statistics.saturation_excess(x, torch.tensor(0.0)), 0.5)
        assert same(statistics.saturation_excess(x, torch.tensor(INF)), -0.5)
        z = math.atanh(0.5) / math.sqrt(2)
        got = statistics.saturation_excess(x, torch.tensor(1.0), threshold=0.5)
        assert float(got) == pytest.approx(0.5 - math.erfc(z), abs=1e-7)

    @pytest.mark.parametrize(("bias", "sign"), [(2.5, 1), (5.0, -1)])
    def test_excess_of_a_few_biased_units_has_either_sign(self, bias: float, sign: int) -> None:
        generator = torch.Generator().manual_seed(2)
        a = 0.1 * torch.randn(1000, 100, generator=generator)
        a[:, :10] += bias
        # Ten units of a hundred make the std 0.3 * bias: 0.76, whose Gaussian saturates 0.6 %, or 1.50, with 16.4 %.
        assert same(statistics.saturation(a.tanh()), 0.1)
        assert same(statistics.dead_units(a.tanh()), 0.1)
        assert float(statistics.saturation_excess(a.tanh(), statistics.std(a))) * sign > 0.06

    @given(matrices)
    def test_sign_does_not_matter(self, x: Tensor) -> None:
        assert torch.equal(statistics.saturation(x), statistics.saturation(-x))

    @given(matrices, st.floats(0.05, 0.95), st.floats(0.05, 0.95))
    def test_falls_with_the_threshold(self, x: Tensor, a: float, b: float) -> None:
        assert statistics.saturation(x, max(a, b)) <= statistics.saturation(x, min(a, b))


class TestOtherShares:
    def test_linear_share_exact(self) -> None:
        x = tensor(-2, -0.79, 0, 0.79, 0.81, 3, INF, -INF)
        assert same(statistics.linear_share(x), 3 / 8)
        assert same(statistics.linear_share(x, bound=0.5), 1 / 8)
        assert same(statistics.linear_share(tensor(0.5, -0.5, 0.25), bound=0.5), 1 / 3)

    def test_constants_are_what_they_say(self) -> None:
        assert statistics.SATURATED == 0.97
        assert 1 - statistics.SATURATED**2 < 0.06
        assert statistics.LINEAR == 0.8
        assert 1 - math.tanh(statistics.LINEAR) ** 2 > 0.55

    def test_zero_share_exact(self) -> None:
        assert same(statistics.zero_share(tensor(-1, -0.0, 2, 1e-30).relu()), 2 / 4)
        assert same(statistics.zero_share(tensor(0, INF)), 1 / 2)

    @given(matrices)
    def test_relu_zeroes_what_is_not_positive(self, x: Tensor) -> None:
        assert torch.equal(statistics.zero_share(x.relu()), (x <= 0).float().mean())

    @given(matrices)
    def test_range_and_order(self, x: Tensor) -> None:
        shuffled = x.flatten()[torch.randperm(x.numel())].reshape(x.shape)
        for function in SHARES:
            assert 0 <= function(x) <= 1
            assert torch.equal(function(x), function(shuffled))


class TestUnits:
    def test_dead_exact(self) -> None:
        x = torch.tensor([[0.99, 0.99, 0.99, -0.5], [-0.98, 1.0, 0.9, 0.99]])  # signs may differ within a dead unit
        assert same(statistics.dead_units(x), 2 / 4)
        assert same(statistics.dead_units(x, threshold=0.985), 1 / 4)

    def test_dead_channels(self) -> None:
        x = torch.zeros(2, 4, 3, 3)
        x[:, 1] = 1
        x[:, 2] = -1
        x[1, 2, 0, 0] = 0.5  # one position of one example rescues the channel
        assert same(statistics.dead_units(x, axis=1), 1 / 4)
        assert same(statistics.saturation(x), 35 / 72)

    def test_stuck_exact(self) -> None:
        x = torch.tensor([[0.0, 1e-6, 2e-5, 1.0], [0.0, -1e-6, 0.0, 1.0]])
        assert same(statistics.stuck_units(x), 2 / 4)
        assert same(statistics.stuck_units(x, tolerance=1e-4), 3 / 4)
        assert same(statistics.stuck_units(x, tolerance=1e-7), 1 / 4)
        assert same(statistics.stuck_units(torch.full((4, 1), 0.5), tolerance=0.5), 0)  # the bound itself is not stuck

    @pytest.mark.parametrize(
        ("examples", "allowed"), [(1, 0), (19, 0), (20, 1), (32, 1), (39, 1), (40, 2), (100, 5), (1000, 50)]
    )
    def test_stuck_allows_one_example_in_twenty(self, examples: int, allowed: int) -> None:
        x = torch.zeros(examples, 2)
        x[:allowed, 0] = 1
        x[: allowed + 1, 1] = 1
        assert same(statistics.stuck_units(x), 1 / 2)

    def test_stuck_channels(self) -> None:
        x = torch.ones(2, 4, 5, 5)
        x[:, 3] = 0
        x[:, 2] = 0
        x[0, 2, 0, :3] = 1  # 3 of the channel's 50 values: more than one in twenty
        assert same(statistics.stuck_units(x, axis=1), 1 / 4)

    def test_stuck_names_the_dying_relu(self) -> None:
        generator = torch.Generator().manual_seed(3)
        layer = nn.Linear(10, 50)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(50, 10, generator=generator) / 10**0.5)
            layer.bias.zero_()
            layer.bias[:5] = -10  # ten standard deviations below zero
            x = layer(torch.randn(1000, 10, generator=generator)).relu()
        assert same(statistics.stuck_units(x), 5 / 50)
        assert float(statistics.zero_share(x)) == pytest.approx(0.55, abs=0.02)

    @given(matrices)
    def test_range_and_order(self, x: Tensor) -> None:
        for function in UNIT_SHARES:
            share = function(x)
            assert 0 <= share <= 1
            assert float(share) * x.size(1) == pytest.approx(round(float(share) * x.size(1)), abs=1e-5)
            assert torch.equal(share, function(x[torch.randperm(x.size(0))]))
            assert torch.equal(share, function(x[:, torch.randperm(x.size(1))]))
            assert torch.equal(share, function(torch.cat([x, x])))

    @given(matrices)
    def test_dead_units_cannot_outweigh_saturation(self, x: Tensor) -> None:
        assert statistics.dead_units(x) <= statistics.saturation(x) + 1e-6
        assert statistics.dead_units(x) + statistics.stuck_units(x) <= 1


class TestRatios:
    data = torch.tensor([[1.0, -1.0], [1.0, -1.0]])

    def test_grad_data_exact(self) -> None:
        assert same(statistics.grad_data_ratio(0.25 * self.data, self.data), 0.25)
        assert same(statistics.grad_data_ratio(torch.zeros(2, 2), self.data), 0)
        assert same(statistics.grad_data_ratio(torch.full((2, 2), 3.0), self.data), 0)  # std, not size

    def test_grad_data_of_constant_data(self) -> None:
        for data in (torch.ones(2, 2), torch.zeros(2, 2), torch.full((30, 100), 0.1)):
            assert same(statistics.grad_data_ratio(torch.randn_like(data), data), NAN)
            assert same(statistics.grad_data_ratio(torch.zeros_like(data), data), NAN)

    def test_infinite_gradient(self) -> None:
        assert same(statistics.grad_data_ratio(torch.full((2, 2), INF), self.data), NAN)
        assert same(statistics.update_data_ratio(torch.full((2, 2), INF), self.data), NAN)
        assert same(statistics.update_data_ratio(tensor(INF, 0), tensor(1, 2)), INF)

    @pytest.mark.parametrize("exponent", [-5, -3, -2, 0, 1])
    def test_update_data_is_in_decades(self, exponent: int) -> None:
        got = statistics.update_data_ratio(10.0**exponent * self.data.double(), self.data)
        assert float(got) == pytest.approx(exponent, abs=1e-6)  # one float32 rounding before log10, one after

    def test_zero_update(self) -> None:
        assert same(statistics.update_data_ratio(torch.zeros(2, 2), self.data), -INF)
        assert same(statistics.update_data_ratio(torch.zeros(2), torch.ones(2)), -INF)
        assert same(statistics.update_data_ratio(torch.tensor(0.0), torch.tensor(1.0)), -INF)

    def test_update_of_a_constant_matrix(self) -> None:
        assert same(statistics.update_data_ratio(self.data, torch.ones(2, 2)), NAN)
        assert same(statistics.update_data_ratio(torch.zeros(2, 2), torch.ones(2, 2)), NAN)

    def test_vectors_are_measured_by_rms_and_at_least_1(self) -> None:
        update = tensor(0.01, -0.01)
        for data, decades in [((1, 1), -2), ((0, 0), -2), ((0.1, 0.1), -2), ((10, -10), -3)]:
            assert float(statistics.update_data_ratio(update, tensor(*data))) == pytest.approx(decades, abs=1e-6)
        assert float(statistics.update_data_ratio(torch.tensor(0.1), torch.tensor(0.0))) == pytest.approx(-1, abs=1e-6)

    @given(matrices, matrices, st.sampled_from([0.25, 4.0]))
    def test_scale(self, a: Tensor, b: Tensor, factor: float) -> None:
        ratio = float(statistics.grad_data_ratio(a, b))
        assert same(statistics.grad_data_ratio(factor * a, b), factor * ratio)
        assert same(statistics.grad_data_ratio(factor * a, factor * b), ratio)
        assert math.isnan(ratio) or ratio >= 0
        assert same(statistics.update_data_ratio(factor * a, factor * b), float(statistics.update_data_ratio(a, b)))
        decades = float(statistics.update_data_ratio(factor * a, b)) - float(statistics.update_data_ratio(a, b))
        assert math.isnan(decades) or decades == pytest.approx(math.log10(factor), abs=1e-6)

    def test_for_sgd_it_is_the_lectures_lr_times_grad(self) -> None:
        generator = torch.Generator().manual_seed(4)
        layer = nn.Linear(30, 200)
        with torch.no_grad():
            layer.weight.normal_(0, 30**-0.5, generator=generator)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.randn(32, 30, generator=generator)).tanh().square().mean().backward()
            before = layer.weight.detach().clone()
            optimizer.step()
            p, grad = layer.weight.detach(), layer.weight.grad
            assert grad is not None
            lecture = float(((0.1 * grad).std() / p.std()).log10())
            got = float(statistics.update_data_ratio(p - before, p))
            # after - before carries the rounding of p, at most half a unit in the last place of the largest |p|.
            rounding = 2**-24 * float(p.abs().max()) / float((0.1 * grad).std())
            assert got == pytest.approx(lecture, abs=rounding / math.log(10) + 1e-6)
            assert rounding < 1e-2  # or the comparison above would be an empty one

    def test_momentum_is_counted(self) -> None:
        p = nn.Parameter(self.data.clone())
        optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
        for _ in range(2):
            before = p.detach().clone()
            p.grad = 0.5 * self.data
            optimizer.step()
        # Velocity 0.5, then 0.9 * 0.5 + 0.5 = 0.95; data 1 - 0.05 - 0.095: twice what lr * grad says.
        expected = math.log10(0.095 / 0.855)
        assert float(statistics.update_data_ratio(p.detach() - before, p.detach())) == pytest.approx(expected, abs=1e-6)


class TestGradients:
    def test_global_norm_exact(self) -> None:
        assert same(statistics.global_norm([tensor(3), tensor(4)]), 5)
        assert same(statistics.global_norm([torch.ones(2, 2), torch.tensor(2.0), tensor(1, 0)]), 3)
        assert same(statistics.global_norm(x for x in [tensor(3, 4)]), 5)
        assert same(statistics.global_norm([tensor(3), tensor(4, dtype=torch.float64)]), 5)

    def test_global_norm_of_nothing(self) -> None:
        assert same(statistics.global_norm([]), 0)
        assert same(statistics.global_norm([torch.empty(0)]), 0)

    def test_global_norm_is_what_clipping_takes(self) -> None:
        generator = torch.Generator().manual_seed(5)
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in [(27, 10), (30, 200), (200,)]]
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        grads = [p.grad for p in parameters if p.grad is not None]
        got = statistics.global_norm(grads)
        assert torch.equal(got, nn.utils.clip_grad_norm_(parameters, 1.0))

    def test_global_norm_tells_of_infinity(self) -> None:
        assert same(statistics.global_norm([tensor(1), tensor(-INF, 2)]), INF)

    def test_not_finite_exact(self) -> None:
        assert same(statistics.not_finite([tensor(1, NAN, INF), torch.zeros(2, 2), tensor(-INF)]), 3)
        assert same(statistics.not_finite(x for x in [tensor(NAN)]), 1)
        assert same(statistics.not_finite([torch.zeros(3)]), 0)
        assert same(statistics.not_finite([]), 0)
        assert same(statistics.not_finite([torch.empty(0)]), 0)

    @given(st.lists(matrices, max_size=4), st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, tensors: list[Tensor], random: Any) -> None:
        shuffled = random.sample(tensors, len(tensors))
        norm = float(statistics.global_norm(tensors))
        assert norm == pytest.approx(math.sqrt(sum(float(t.double().square().sum()) for t in tensors)), rel=1e-6)
        assert float(statistics.global_norm(shuffled)) == pytest.approx(norm, rel=1e-6)
        halves = [t.where(t >= 0, NAN) for t in tensors]
        assert same(statistics.not_finite(halves), sum(int((t < 0).sum()) for t in tensors))


def null_lags(n: int, seed: int, channels: int = 100) -> tuple[float, float]:
    """Both lags of a Gaussian batch against perfect running statistics."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = torch.randn(channels, generator=generator), torch.rand(channels, generator=generator) + 0.5
    batch = mean + std * torch.randn(n, channels, generator=generator)
    var, batch_mean = torch.var_mean(batch, 0, correction=0)
    return (
        float(statistics.mean_lag(batch_mean, mean, std.square(), n)),
        float(statistics.var_lag(var, std.square(), n)),
    )


class TestBatchNorm:
    def test_mean_lag_exact(self) -> None:
        zero, one = torch.zeros(2), torch.ones(2)
        assert same(statistics.mean_lag(tensor(3, 4), zero, one, 1), math.sqrt(12.5))
        assert same(statistics.mean_lag(tensor(3, 4), zero, one, 16), 4 * math.sqrt(12.5))
        assert same(statistics.mean_lag(tensor(3, 4), zero, tensor(9, 16), 16), 4)
        assert same(statistics.mean_lag(tensor(3, 4), tensor(3, 4), one, 16), 0)

    def test_var_lag_exact(self) -> None:
        # Biased n-1/n is the unbiased 1; e times that is one away in the log.
        n = 9
        biased = (n - 1) / n
        null = math.sqrt(mpmath.psi(1, 4) + (mpmath.psi(0, 4) - math.log(4)) ** 2)
        assert float(statistics.var_lag(tensor(biased, biased), torch.ones(2), n)) == pytest.approx(0, abs=1e-6)
        for factor in (math.e, 1 / math.e):
            got = statistics.var_lag(tensor(biased * factor, biased * factor), torch.ones(2), n)
            assert float(got) == pytest.approx(1 / null, rel=1e-6)
        got = statistics.var_lag(tensor(4 * biased, 2 * biased), tensor(4, 4), n)
        assert float(got) == pytest.approx(math.log(2) / math.sqrt(2) / null, rel=1e-6)

    @pytest.mark.parametrize("n", [2, 3, 4, 32, 1024, 10**6])
    def test_var_lags_unit_is_mpmaths(self, n: int) -> None:
        k = (n - 1) / 2
        null = math.sqrt(mpmath.psi(1, k) + (mpmath.psi(0, k) - mpmath.log(k)) ** 2)
        got = statistics.var_lag(tensor(math.e * (n - 1) / n), torch.ones(1), n)
        assert float(got) == pytest.approx(1 / null, rel=2e-6)
        if n >= 1024:
            assert null == pytest.approx(math.sqrt(2 / (n - 1)), rel=1e-3)

    def test_zero_variance_channels_are_left_out(self) -> None:
        zero = torch.zeros(3)
        assert same(statistics.mean_lag(tensor(1, 7, 1), zero, tensor(1, 0, 1), 4), 2)
        assert same(statistics.mean_lag(zero, zero, tensor(1, 0, 1), 4), 0)
        alone = statistics.var_lag(tensor(2), tensor(1), 8)
        assert same(statistics.var_lag(tensor(2, 0), tensor(1, 1), 8), float(alone))
        assert same(statistics.var_lag(tensor(2, 1), tensor(1, 0), 8), float(alone))
        assert same(statistics.var_lag(tensor(2, 0), tensor(1, 0), 8), float(alone))

    def test_no_channel_left(self) -> None:
        zero, one = torch.zeros(3), torch.ones(3)
        assert same(statistics.mean_lag(one, zero, zero, 8), NAN)
        assert same(statistics.var_lag(zero, one, 8), NAN)
        assert same(statistics.var_lag(one, zero, 8), NAN)
        assert same(statistics.mean_lag(zero[:0], zero[:0], zero[:0], 8), NAN)
        assert same(statistics.var_lag(zero[:0], zero[:0], 8), NAN)

    def test_infinity(self) -> None:
        assert same(statistics.mean_lag(tensor(INF, 0), torch.zeros(2), torch.ones(2), 8), INF)
        assert same(statistics.var_lag(tensor(INF, 1), torch.ones(2), 8), INF)

    def test_one_value_has_no_variance(self) -> None:
        assert same(statistics.var_lag(torch.zeros(3), torch.ones(3), 1), NAN)

    @pytest.mark.parametrize("n", [4, 8, 32, 128, 1024])
    def test_null_is_1_at_every_batch_size(self, n: int) -> None:
        lags = torch.tensor([null_lags(n, seed) for seed in range(300)], dtype=torch.float64)
        # Mean of the squares over 300 batches of 100 channels: exactly 1 in expectation. Its standard error is
        # sqrt((kurtosis - 1) / 30,000): 0.008 for the Gaussian mean, up to 0.012 for the skewed log of chi2_3.
        for squares, error in zip(lags.square().mean(0), (0.0082, 0.012), strict=True):
            assert float(squares) == pytest.approx(1, abs=4 * error)
        # A single batch of 100 channels stays well under the bound of 1.5 at which a lag is called one.
        assert lags[:, 0].quantile(0.99) < 1.2
        assert lags[:, 1].quantile(0.99) < 1.35

    def test_a_lagging_mean_shows(self) -> None:
        n = 32
        generator = torch.Generator().manual_seed(6)
        batch_mean = torch.randn(100, generator=generator) / math.sqrt(n)
        got = float(statistics.mean_lag(batch_mean, torch.full((100,), 0.5), torch.ones(100), n))
        # Half a standard deviation off is sqrt(32) / 2 = 2.83 standard errors, and 1 more for the batch, in squares.
        assert got == pytest.approx(math.sqrt(1 + 8), abs=0.4)

    def test_on_a_real_batch_norm_with_settled_statistics(self) -> None:
        generator = torch.Generator().manual_seed(7)
        norm = nn.BatchNorm1d(100, momentum=0.01)
        with torch.no_grad():
            for _ in range(2000):
                norm(3 + 2 * torch.randn(32, 100, generator=generator))
            batch = 3 + 2 * torch.randn(32, 100, generator=generator)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        var, mean = torch.var_mean(batch, 0, correction=0)
        # One batch of 100 channels: the rms of 100 standard normals has a standard deviation of 0.07, the log's 0.08.
        assert float(statistics.mean_lag(mean, norm.running_mean, norm.running_var, 32)) == pytest.approx(1, abs=0.28)
        assert float(statistics.var_lag(var, norm.running_var, 32)) == pytest.approx(1, abs=0.32)

    @given(
        st.permutations(range(4)),
        st.integers(2, 100),
        st.sampled_from([0.25, 4.0]),
        st.lists(st.integers(1, 40), min_size=8, max_size=8),
    )
    def test_order_and_scale_of_channels(self, order: list[int], n: int, factor: float, values: list[int]) -> None:
        x = torch.tensor(values) / 8
        mean, var, running_mean, running_var = x[:4], x[4:], x.flip(0)[:4], x.flip(0)[4:]
        lag, spread = statistics.mean_lag(mean, running_mean, running_var, n), statistics.var_lag(var, running_var, n)
        assert lag >= 0
        assert spread >= 0
        assert float(statistics.mean_lag(mean[order], running_mean[order], running_var[order], n)) == pytest.approx(
            float(lag), rel=1e-6
        )
        assert float(statistics.var_lag(var[order], running_var[order], n)) == pytest.approx(float(spread), rel=1e-6)
        scaled = statistics.mean_lag(factor * mean, factor * running_mean, factor**2 * running_var, n)
        assert same(scaled, float(lag))
        assert same(statistics.var_lag(factor**2 * var, factor**2 * running_var, n), float(spread))


class TestBatchesOfImages:
    """The lags of a batch whose positions are not independent, with running statistics that are exactly right."""

    @staticmethod
    def lags(x: Tensor, mean: float, var: float) -> tuple[float, float]:
        batch = statistics.batch_statistics(x)
        running_mean, running_var = torch.full_like(batch.mean, mean), torch.full_like(batch.var, var)
        return (
            float(statistics.mean_lag(batch.mean, running_mean, running_var, batch.n_of_mean)),
            float(statistics.var_lag(batch.var, running_var, batch.n, batch.n_of_var)),
        )

    @pytest.mark.parametrize("brightness", [0.0, 0.5, 2.0])
    def test_stationary_images_read_one(self, brightness: float) -> None:
        # the root of the mean square over 400 batches of 32 images and 8 channels: right to 2 %
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(400):
            x = torch.randn(32, 8, 6, 6, generator=generator)
            x += brightness * torch.randn(32, 8, 1, 1, generator=generator)
            found.append(self.lags(x, 0, 1 + brightness**2 * 31 / 32))
        means, variances = (torch.tensor(lag).square().mean().sqrt().item() for lag in zip(*found, strict=True))
        assert means == pytest.approx(1, abs=0.05)
        assert variances == pytest.approx(1, abs=0.1)

    def test_white_noise_is_as_exact_as_all_of_its_pixels(self) -> None:
        x = torch.randn(256, 64, 4, 4, generator=torch.Generator().manual_seed(0))
        batch = statistics.batch_statistics(x)
        assert (batch.n, float(batch.n_of_mean)) == (4096, pytest.approx(4096, rel=0.05))
        assert float(batch.n_of_var) == pytest.approx(4096, rel=0.05)

    def test_images_of_one_colour_are_as_exact_as_their_number(self) -> None:
        x = torch.randn(256, 64, 1, 1, generator=torch.Generator().manual_seed(0)).expand(256, 64, 4, 4)
        assert float(statistics.batch_statistics(x).n_of_mean) == pytest.approx(255, rel=1e-4)

    @pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (8, 3, 2, 5), (8, 3, 2, 5, 2), (8, 3, 1, 1)])
    def test_mean_and_variance_are_those_of_all_values(self, shape: tuple[int, ...]) -> None:
        x = 3 + 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        batch, values = statistics.batch_statistics(x), x.transpose(0, 1).flatten(1)
        # sums of at most 160 values of about 4 in float64, in another order
        torch.testing.assert_close(batch.mean, values.mean(1), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(batch.var, values.var(1, correction=0), rtol=1e-13, atol=1e-13)
        assert batch.n == values.size(1)
        if values.size(1) == 8:  # one value an image: nothing to estimate
            assert batch.n_of_mean == batch.n_of_var == 8

    def test_half_precision_is_summed_in_float32(self) -> None:
        # under autocast BatchNorm gets float16 and keeps float32 statistics; the squares of 300 overflow float16
        x = torch.tensor([[300.0, 0.0], [-300.0, 2.0]], dtype=torch.float16)
        assert statistics.batch_statistics(x).var.tolist() == [90000, 1]

    def test_one_image_has_nothing_to_compare_with(self) -> None:
        assert all(math.isnan(lag) for lag in self.lags(torch.randn(1, 3, 4, 4), 0, 1))


class TestComplex:
    """A complex number counts as its two parts."""

    def test_norm_is_torch_s_and_std_that_of_both_parts(self) -> None:
        x = torch.randn(5, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
        both = torch.cat([x.real.flatten(), x.imag.flatten()])
        assert float(statistics.std(x)) == pytest.approx(float(both.std()), rel=1e-6)
        conjugate = torch.cat([x.real.flatten(), -x.imag.flatten()])
        assert float(statistics.std(x.conj())) == pytest.approx(float(conjugate.std()), rel=1e-6)
        assert float(statistics.rms(x)) == pytest.approx(float(both.square().mean().sqrt()), rel=1e-6)
        norm = torch.nn.utils.get_total_norm([x])
        assert float(statistics.global_norm([x])) == pytest.approx(float(norm.real), rel=1e-6)
        ratio = float(statistics.update_data_ratio(x / 1000, x))
        assert ratio == pytest.approx(-3, abs=1e-5)

    def test_sizes_are_absolute_values(self) -> None:
        x = torch.tensor([[0.9 + 0.9j, 0j], [1j, 0j]])
        assert same(statistics.saturation(x), 0.5)
        assert same(statistics.dead_units(x), 0.5)
        assert same(statistics.stuck_units(x), 0.5)
        assert same(statistics.zero_share(x), 0.5)
