"""Run alone: pytest tests/test_figures.py"""

import base64
import io
import re
from importlib import resources
from itertools import combinations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from makemore_pl.figures import canvas, comparisons, curves, encoding, layer_names, lecture_pictures, series
from makemore_pl.figures.fonts import drawable

BAND = (-3.5, -1.0)
UNIT = ([-1.0, -0.5, 0.0, 0.5, 1.0], [1, 1, 2, 4])
LAYERS = {"layers.0": UNIT, "layers.1": ([-1.0, 0.0, 1.0], [3, 1])}
STEPS = [0, 1, 2, 5, 10, 20]
UPDATES = {name: [-2.0 - place / 10] * 6 for place, name in enumerate(("embedding.weight", "layers.0.linear.weight"))}


def panel(figure: Figure) -> Axes:
    (ax,) = figure.axes
    return ax


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_density_integrates_to_one() -> None:
    centers, heights = series.density(*UNIT)
    assert centers.tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert heights.tolist() == [0.25, 0.25, 0.5, 1.0]
    assert heights.sum() * 0.5 == 1


def test_density_of_nothing_is_zero() -> None:
    assert series.density([0, 1, 3], [0, 0])[1].tolist() == [0, 0]


def test_density_of_uneven_bins() -> None:
    assert series.density([0, 1, 3], [1, 1])[1].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 1.0), (0.9, 1.0), (0.995, 10.0)])
def test_reach_cuts_tails(share: float, expected: float) -> None:
    assert series.reach({"a": ([-10, -1, 1, 10], [1, 98, 1])}, share) == expected


def test_reach_without_counts() -> None:
    assert series.reach({"a": ([-1, 0, 1], [0, 0])}) == 0
    assert series.reach({}) == 0


def test_trailing_mean_is_of_near_steps_up_to_each() -> None:
    assert series.trailing_mean([0, 1, 2, 5], [8.0, 4.0, 2.0, 1.0]).tolist() == [8, 4, 2, 1]
    assert series.trailing_mean([100, 101, 102], [1.0, 2.0, 6.0]).tolist() == [1, 1.5, 3]
    assert series.trailing_mean([100, 101, 102], [1.0, 2.0, 6.0], window=2).tolist() == [1, 1.5, 4]


def test_trailing_mean_does_not_cross_a_drop() -> None:
    values = np.r_[np.full(50, -2.0), np.full(50, -3.0)]
    steps = np.arange(1000, 1100)
    assert series.trailing_mean(steps, values, [1050]).tolist() == values.tolist()
    assert (np.diff(series.trailing_mean(steps, values)) != 0).sum() > 1
    twice = series.trailing_mean(steps, np.arange(100.0), [1050, 1060])
    assert twice[[49, 50, 59, 60, 61]].tolist() == [39, 50, 54.5, 60, 60.5]


def test_trailing_mean_leaves_out_nan() -> None:
    assert series.trailing_mean([100, 101, 102], [1.0, np.nan, 3.0]).tolist() == [1, 1, 2]
    assert np.isnan(series.trailing_mean([0], [np.nan])).all()
    assert series.trailing_mean([], []).size == 0
    assert series.trailing_mean([], [], [5]).size == 0


def test_drops() -> None:
    assert series.drops([0, 5, 10, 15], [0.1, 0.1, 0.01, 0.001]).tolist() == [10, 15]
    cosine = 0.1 * (0.55 + 0.45 * np.cos(np.linspace(0, np.pi, 50)))
    assert series.drops(np.arange(50), cosine).size == 0
    assert series.drops([0, 1, 2], [0.01, 0.05, 0.1]).size == 0  # warm-up
    assert series.drops([], []).size == 0


def test_spread_of_a_histogram() -> None:
    values = np.random.default_rng(0).normal(0, 0.3, 100_000)
    counts, edges = np.histogram(values, 200)
    assert series.spread(edges, counts) == pytest.approx(0.3, rel=0.01)
    assert series.spread([0, 1], [0]) == 0


def test_thin_keeps_beginning_and_end() -> None:
    steps, values = series.thin(np.arange(200_000), np.arange(200_000) * 2)
    assert len(steps) <= 500
    assert steps[:100].tolist() == list(range(100))
    assert steps[-1] == 199_999
    assert (values == 2 * steps).all()
    assert series.thin([1, 2], [3, None])[1][0] == 3


def test_limits() -> None:
    assert series.limits([0.0, 10.0], [np.nan], margin=0.1) == (-1, 11)
    assert series.limits([0.0]) == (-1, 1)
    assert series.limits([np.nan]) is None
    assert series.limits() is None


@pytest.mark.parametrize(("values", "marker"), [([1.0], "o"), ([1.0, 2.0], "None")])
def test_a_single_number_is_a_dot(values: list[float], marker: str) -> None:
    ax = panel(curves.lines(range(len(values)), {"layers.0": values}, "one"))
    assert [line.get_marker() for line in ax.lines] == [marker]


@pytest.mark.parametrize("sign", [1, -1])
def test_principal_components_of_a_line(sign: int) -> None:
    scores, shares = series.principal_components([[0, 0], [sign * 3, sign * 4], [sign * 12, sign * 16]])
    assert scores[:, 0] == pytest.approx([-25 / 3, -10 / 3, 35 / 3]), "the farthest is positive"
    assert scores[:, 1] == pytest.approx([0, 0, 0], abs=1e-12)
    assert shares == pytest.approx([1, 0])


def test_principal_components_do_not_depend_on_rotation_or_sign() -> None:
    points = np.random.default_rng(0).normal(size=(27, 10))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(10, 10)))[0]
    ours, shares = series.principal_components(points)
    theirs, rotated_shares = series.principal_components(points @ rotation)
    assert ours == pytest.approx(theirs)
    assert shares == pytest.approx(rotated_shares)
    assert (ours.max(0) >= -ours.min(0)).all()


@pytest.mark.parametrize("width", [1, 2])
def test_principal_components_of_narrow_embeddings(width: int) -> None:
    scores, shares = series.principal_components(np.arange(6.0).reshape(6 // width, width))
    assert scores.shape == (6 // width, 2)
    assert shares.sum() == pytest.approx(1)


def test_distributions() -> None:
    ax = panel(lecture_pictures.distributions(LAYERS, "activations", "activation"))
    assert labels(ax) == ["layer 1", "layer 2"]
    assert ax.lines[0].get_ydata().tolist() == [0.25, 0.25, 0.5, 1.0]
    assert (ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()) == ("activations", "activation", "density")
    assert ax.get_xlim() == pytest.approx((-1.02, 1.02))
    assert ax.get_xticks().tolist() == [-1, 0, 1]
    shades = [each.get_extents().transformed(ax.transData.inverted()) for each in ax.patches]
    assert [(each.x0, each.x1) for each in shades] == [pytest.approx((-1.02, -0.97)), pytest.approx((0.97, 1.02))]
    assert ax.get_ylim()[0] == 0


def test_distributions_cut_long_tails() -> None:
    ax = panel(lecture_pictures.distributions({"output": ([-100, -2, 0, 2, 100], [1, 998, 1000, 1])}, "", ""))
    assert ax.get_xlim() == pytest.approx((-2.04, 2.04))


def test_update_ratios() -> None:
    ax = panel(lecture_pictures.update_ratios(STEPS, UPDATES, BAND))
    band = ax.patches[0].get_window_extent().transformed(ax.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx(BAND)
    assert -3 in [line.get_ydata()[0] for line in ax.lines]
    assert labels(ax) == ["embedding", "layer 1"]
    low, high = ax.get_ylim()
    assert low <= -4
    assert high >= -0.5


def test_update_ratios_of_skipped_steps() -> None:
    ax = panel(lecture_pictures.update_ratios([0, 1], {"layers.0": [-np.inf, None]}, BAND))
    assert np.isfinite(ax.get_ylim()).all()


def test_steps_are_logarithmic_and_begin_at_0() -> None:
    ax = panel(curves.lines([0, 10, 20_000], {"layers.0": [1, 2, 3]}, "saturation", "share"))
    assert ax.get_xscale() == "symlog"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1", "10", "100", "1k", "10k"]
    assert ax.get_xlim()[0] < 0 < 20_000 < ax.get_xlim()[1]


def test_linear_steps() -> None:
    ax = panel(curves.lines([0, 100], {"layers.0": [1, 2]}, "", log=False))
    assert ax.get_xscale() == "linear"


def test_lines_leave_gaps_and_show_zero_and_the_bound() -> None:
    ax = panel(curves.lines(STEPS, {"a": [1, 2, None, 2, 1, 1]}, "", "", {"near": 2.5, "far": 50}))
    assert np.isnan(ax.lines[0].get_ydata()[2])
    assert [text.get_text() for text in ax.texts] == ["far", "near"]
    low, high = ax.get_ylim()
    assert low == 0
    assert high > 50
    assert panel(curves.lines(STEPS, {"a": [-1, 0, 0, 0, 0, 0]}, "")).get_ylim()[0] < -1


@pytest.mark.parametrize("worst", [30.0, 1.6e4, 3e17])
def test_losses_of_a_run_that_diverged_have_ticks_apart(worst: float) -> None:
    figure = curves.loss_curve(
        STEPS, [3.3, worst, worst, worst, worst, 5], [20], [4.0], {"uniform": 3.3, "bigram": 2.4}
    )
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    ax = panel(figure)
    boxes = [label.get_window_extent() for label in ax.get_yticklabels() if label.get_text()]
    low, high = ax.get_window_extent().y0, ax.get_window_extent().y1
    seen = [box for box in boxes if low <= (box.y0 + box.y1) / 2 <= high]
    assert len(seen) >= 3
    assert not [pair for pair in combinations(seen, 2) if pair[0].overlaps(pair[1])]
    assert seen[-1].y1 > low + 0.6 * (high - low), "not at the foot of the axis alone"


def test_baselines_are_not_named_over_each_other() -> None:
    names = {"uniform": 3.3, "unigram": 2.8, "bigram": 2.4}
    close_up = panel(curves.loss_curve(STEPS, [1e4] * 6, [20], [1e4], names, log=False))
    assert [text.get_text() for text in close_up.texts] == ["uniform"]


def test_two_drops_are_named_below_each_other() -> None:
    figure = curves.lines(STEPS, {"a": STEPS}, "", drops=[18, 19])
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    one, other = (text.get_window_extent() for text in panel(figure).texts)
    assert not one.overlaps(other)


def test_drops_are_marked() -> None:
    for ax in (
        panel(curves.lines(STEPS, {"a": STEPS}, "", drops=[10])),
        panel(curves.loss_curve(STEPS, STEPS, [], [], {}, drops=[10])),
        panel(lecture_pictures.update_ratios(STEPS, UPDATES, BAND, drops=[10])),
        panel(comparisons.overlaid_curves({"a": (STEPS, STEPS)}, "", "", {"a": "a"}, [10])),
    ):
        assert [10.0, 10.0] in [np.asarray(line.get_xdata()).tolist() for line in ax.lines]
        assert "lr drops" in [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("log", [True, False])
def test_no_label_lies_over_another(log: bool) -> None:
    bounds = {"bound, first layer": 0.25, "bound, later ones": 0.15}
    figure = curves.lines(
        [0, 1, 50_000, 100_000], {"layers.0": [0.2] * 4}, "saturation", "", bounds, log, drops=[50_000]
    )
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in panel(figure).texts]
    assert len(boxes) == 3
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])


def test_over_depth() -> None:
    layers = [f"layers.{depth}" for depth in range(5)]
    flat = {"step 0": dict.fromkeys(layers, 0.6), "step 1,000": dict.fromkeys(layers[:3], 0.7)}
    ax = panel(curves.over_depth(flat, "spread", "std"))
    assert labels(ax) == ["step 0", "step 1,000"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "3", "4", "5"]
    assert (ax.get_yscale(), ax.get_ylim()[0]) == ("linear", 0)
    shrinking = {"step 0": {layer: 0.4**depth for depth, layer in enumerate(layers)}}
    assert panel(curves.over_depth(shrinking, "spread", "std")).get_yscale() == "log"


def test_losses_of_two_runs() -> None:
    two = {"a, train mean": (STEPS, STEPS), "a b, val": ([20], [2.0]), "a, val": ([20], [2.1])}
    ax = panel(curves.losses(two, ["a b", "a"]))
    assert set(labels(ax)) == set(two)
    colours = {line.get_label(): line.get_color() for line in ax.lines}
    assert colours["a, train mean"] == colours["a, val"] != colours["a b, val"]


def test_values_of_many_sizes_are_logarithmic() -> None:
    ax = panel(curves.lines([0, 1], {"layers.0": [0.001, 0.01], "output": [1, 10]}, "", log_values=True))
    assert ax.get_yscale() == "log"
    low, high = ax.get_ylim()
    assert 0 < low < 0.001 < 10 < high


def test_a_layer_has_one_colour_everywhere() -> None:
    activations = panel(lecture_pictures.distributions(LAYERS, "", "")).lines[1]
    updates = panel(curves.lines(STEPS, {"embedding.weight": STEPS, "layers.1.linear.weight": STEPS}, "")).lines[1]
    assert activations.get_color() == updates.get_color() == canvas.LAYERS[1]


def test_deep_layers_differ_from_the_first_ones() -> None:
    assert len({canvas.line_of(f"layers.{depth}") for depth in range(15)}) == 15


def test_names_for_people() -> None:
    assert layer_names.spoken("layers.0.linear.weight") == "layer 1 weight"
    assert layer_names.spoken("layers.11.batchnorm.bias") == "layer 12 BatchNorm bias"
    assert layer_names.spoken("layers.2") == "layer 3"
    assert layer_names.spoken("output.linear.weight") == "output weight"
    assert layer_names.spoken("embedding.weight") == "embedding weight"
    for strange in ("net.0.weight", "a", "layers.x", "transformer.layers.0.mlp.weight", "layers.0.attention.q.weight"):
        assert layer_names.spoken(strange) == strange


def test_short_names_stay_different() -> None:
    assert layer_names.short(["embedding.weight", "layers.0.linear.weight"]) == {
        "embedding.weight": "embedding",
        "layers.0.linear.weight": "layer 1",
    }
    twins = ["layers.0.linear.weight", "layers.0.linear.bias", "layers.0"]
    assert layer_names.short(twins) == dict(zip(twins, ["layer 1 weight", "layer 1 bias", "layer 1"], strict=True))
    assert layer_names.short(["a", "a.weight"]) == {"a": "a", "a.weight": "a.weight"}


def test_layers_are_in_the_order_of_their_numbers() -> None:
    names = ["output", "layers.10", "layers.2", "embedding", "layers.1.weight", "layers.1.bias"]
    assert layer_names.in_order(names) == [
        "embedding", "layers.1.bias", "layers.1.weight", "layers.2", "layers.10", "output"
    ]  # fmt: skip


class TestDistributions:
    SPIKE = ([-1.0, -0.01, 0.01, 1.0], [5, 990, 5])
    FLAT = ([-2.0, -1.0, 0.0, 1.0, 2.0], [1, 4, 4, 1])

    def test_a_spike_beside_a_flat_curve(self) -> None:
        ax = panel(lecture_pictures.distributions({"a": self.SPIKE, "b": self.FLAT}, "", "", log=True))
        assert ax.get_yscale() == "log"
        low, high = ax.get_ylim()
        assert low < 0.1 < 0.4 < 49.5 < high

    def test_units_of_its_own(self) -> None:
        values = np.random.default_rng(0).normal(size=10_000)
        scaled = {name: np.histogram(values * std, 40)[::-1] for name, std in (("a", 1e-6), ("b", 1.0), ("c", 1e3))}
        ax = panel(lecture_pictures.distributions(scaled, "", "gradient", own_units=True))
        first, *others = ax.lines
        for other in others:
            assert other.get_ydata() == pytest.approx(first.get_ydata())
            assert other.get_xdata() == pytest.approx(first.get_xdata())
        assert ax.get_xlim() == (-4, 4)
        assert "standard deviations of its own" in ax.get_xlabel()


class TestFilm:
    FRAMES = {0: LAYERS, 1000: {"layers.0": ([-1.0, 0.0, 1.0], [1, 9])}}

    def test_a_frame_is_what_the_figure_draws(self) -> None:
        """The paths of a film lie where matplotlib itself puts them."""
        moving = lecture_pictures.distribution_film(self.FRAMES, "activations", "activation")
        still = lecture_pictures.distributions(LAYERS, "activations", "activation")
        panel(still).set_ylim(panel(moving.stage).get_ylim())
        panel(still).set_xlim(panel(moving.stage).get_xlim())
        drawn = r'<path d="([^"]+)" clip-path="[^"]+" style="fill: none; stroke: #(?!dde)'
        theirs = re.findall(drawn, encoding.svg(still))
        ours = re.findall(r'<path d="([^"]+)"', moving.moves[0])
        assert len(ours) == 2
        for one, other in zip(ours, theirs[-2:], strict=True):
            numbers = [np.array(re.findall(r"-?[\d.]+", each), dtype=float) for each in (one, other)]
            assert numbers[0] == pytest.approx(numbers[1], abs=0.06)

    def test_axes_and_legend_stay(self) -> None:
        moving = lecture_pictures.distribution_film(self.FRAMES, "activations", "activation")
        assert list(panel(moving.stage).lines) == []
        assert labels(panel(moving.stage)) == ["layer 1", "layer 2"]
        assert list(moving.moves) == [0, 1000]
        assert [each.count("<path") for each in moving.moves.values()] == [2, 1]

    def test_updates_go_as_far_as_the_step(self) -> None:
        moving = lecture_pictures.update_film(STEPS, UPDATES, [0, 2, 20], BAND)
        points = [len(re.findall("[ML]", each)) for each in moving.moves.values()]
        assert points == [0, 6, 12]
        assert [each.count("<circle") for each in moving.moves.values()] == [2, 2, 2]

    def test_a_gap_stays_a_gap(self) -> None:
        moving = lecture_pictures.update_film([0, 1, 2, 3], {"layers.0": [-2, None, -2, -np.inf]}, [3], BAND)
        (path,) = re.findall(r'<path d="([^"]+)"', moving.moves[3])
        assert [letter for letter in path if letter in "ML"] == ["M", "M"]
        assert not re.search("nan|inf", moving.moves[3])

    def test_rasters_are_lossless(self) -> None:
        raster = np.random.default_rng(0).random((32, 200)) < 0.2
        moving = lecture_pictures.raster_film({7: raster}, "layer 1")
        encoded = re.findall('base64,([^"]+)', moving.moves[7])[0]
        assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))) == raster).all()


def test_saturation_raster_is_white_where_saturated() -> None:
    saturated = np.array([[True, False, False], [True, True, False]])
    ax = panel(lecture_pictures.saturation_raster(saturated, "layers.0"))
    image = ax.images[0]
    assert (image.get_array() == saturated).all()
    assert to_hex(image.to_rgba(np.array([[0.0, 1.0]]))[0, 1]) == "#ffffff"
    assert to_hex(image.to_rgba(np.array([[0.0, 1.0]]))[0, 0]) == "#000000"
    assert ax.get_xlabel() == "3 units across, 2 examples down"


def test_rasters_of_all_layers() -> None:
    rasters = {f"layers.{depth}": np.eye(4, 8, depth, dtype=bool) for depth in range(3)}
    figure = lecture_pictures.saturation_rasters(rasters, "step 5")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["step 5, layer 1", "layer 2", "layer 3"]
    assert all(
        (ax.images[0].get_array() == raster).all() for ax, raster in zip(figure.axes, rasters.values(), strict=True)
    )


def test_spread_over_depth() -> None:
    gradients = {"layers.0": ([-2.0, 0.0, 2.0], [1, 1]), "layers.1": ([-1.0, 0.0, 1.0], [1, 1])}
    ax = panel(curves.spread_over_depth({name: ([-1, 1], [1]) for name in gradients}, gradients))
    assert labels(ax) == ["activations", "gradients by the last layer's"]
    assert ax.lines[1].get_ydata().tolist() == [2, 1]
    assert labels(panel(curves.spread_over_depth(LAYERS, {}))) == ["activations"]


def test_four_pictures() -> None:
    figure = lecture_pictures.four_pictures(LAYERS, LAYERS, {"embedding.weight": UNIT}, STEPS, UPDATES, BAND, "step 20")
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "activations, step 20",
        "activation gradients, step 20",
        "weight gradients, step 20",
        "update:data ratio",
    ]
    (legend,) = figure.legends
    assert sorted({text.get_text() for text in legend.get_texts()}) == ["embedding", "layer 1", "layer 2"]
    assert len(legend.get_texts()) == 3


def test_four_pictures_of_nothing_say_so() -> None:
    figure = lecture_pictures.four_pictures({}, {}, {}, [], {}, BAND)
    assert [ax.texts[0].get_text() for ax in figure.axes[:3]] == ["not measured"] * 3
    encoding.svg(figure)


BASELINES = {"uniform": 3.3, "unigram": 2.8, "bigram": 2.45}


def test_loss_curve() -> None:
    ax = panel(curves.loss_curve(STEPS, [3.3, 3.2, 3, 2.8, 2.5, 2.4], [20], [2.35], BASELINES))
    assert labels(ax) == ["train, minibatch", "train, mean", "val"]
    assert [text.get_text() for text in ax.texts] == ["uniform", "unigram", "bigram"]
    assert ax.get_yscale() == "linear"
    assert ax.lines[2].get_ydata().tolist() == [2.35]


def test_loss_curve_of_a_hockey_stick() -> None:
    losses = [27.0, 20, 10, 5, 3, 2.5]
    assert panel(curves.loss_curve(STEPS, losses, [], [], BASELINES)).get_yscale() == "log"
    ax = panel(curves.loss_curve(STEPS, losses, [20], [2.4], BASELINES, log=False))
    assert ax.get_ylim()[1] < 12  # close up, without the beginning


def test_loss_curve_with_a_mean_of_its_own() -> None:
    ax = panel(curves.loss_curve([0, 500], [3, 2.9], [], [], {}, mean=[3, 2.5]))
    assert ax.lines[1].get_ydata().tolist() == [3, 2.5]


def test_loss_curve_of_nothing() -> None:
    assert labels(panel(curves.loss_curve([], [], [], [], {}))) == ["train, minibatch", "train, mean", "val"]


def test_heat_map() -> None:
    figure = comparisons.heat_map(
        {"pre": [[0.0, 1.0]], "none": [[np.nan, -0.5]]}, ["a", "b"], ["c"], "val loss", "x", "y"
    )
    cells = [[text.get_text() for text in ax.texts] for ax in figure.axes[:2]]
    assert cells == [["0.000", "1.000"], ["–", "−0.500"]]
    inks = [text.get_color() for text in figure.axes[0].texts]
    assert inks == ["#ffffff", "#000000"]  # viridis is dark below and light above
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["a", "b"]
    assert {ax.collections[0].get_clim() for ax in figure.axes[:2]} == {(-0.5, 1.0)}


def test_heat_map_of_failures_only() -> None:
    figure = comparisons.heat_map({"": [[np.nan]]}, ["a"], ["b"], "")
    assert [text.get_text() for text in figure.axes[0].texts] == ["–"]
    encoding.svg(figure)


def test_embeddings_have_characters_as_markers() -> None:
    characters = ".abcdefghijklmnopqrstuvwxyz"
    ax = panel(comparisons.embeddings_2d(np.random.default_rng(0).normal(size=(27, 10)), characters))
    assert [text.get_text() for text in ax.texts] == list(characters[1:])
    assert "PCA" in ax.get_title(loc="left")
    assert labels(ax) == ["vowel", "consonant", "end mark"]


def test_embeddings_of_another_alphabet() -> None:
    ax = panel(comparisons.embeddings_2d(np.eye(4), ".αβγ"))
    assert labels(ax) == ["end mark"]


def test_curves_are_coloured_by_group_and_named() -> None:
    names = {"gain=1 seed=<1>": "gain=1", "gain=1 seed=2": "gain=1", "gain=3": "gain=3"}
    curves_of = {label: ([0, 10], [place, place]) for place, label in enumerate(names)}
    figure = comparisons.overlaid_curves(curves_of, "training loss", "nats", names)
    assert labels(panel(figure)) == ["gain=1", "gain=3"]
    colours = [line.get_color() for line in panel(figure).lines]
    assert colours == [canvas.LAYERS[place] for place in (0, 0, 4, 0, 4)]
    inlined = encoding.inline(encoding.svg(figure), "curves", "")
    assert re.findall("<title>(.*?)</title>", inlined) == ["gain=1 seed=&lt;1&gt;", "gain=1 seed=2", "gain=3"]


def test_a_curve_that_diverged_does_not_set_the_scale() -> None:
    curves_of = {str(place): ([0, 10], [3.0, 2.0 + place]) for place in range(4)} | {"bad": ([0, 10], [3.0, 1000.0])}
    figure = comparisons.overlaid_curves(curves_of, "", "", dict.fromkeys(curves_of, "all"))
    assert panel(figure).get_ylim()[1] < 10


def test_heat_map_on_a_fixed_range_has_a_scale() -> None:
    figure = comparisons.heat_map({"": [[0.1, 0.2, 7.0]]}, ["a", "b", "c"], ["d"], "", span=(0.0, 1.0))
    cells, scale = figure.axes
    assert cells.collections[0].get_clim() == (0, 1)
    assert [text.get_text() for text in cells.texts] == ["0.100", "0.200", "7.000"]
    assert scale.get_ylim() == (0, 1)


def test_svg_is_the_same_every_time() -> None:
    first, second = (encoding.svg(lecture_pictures.distributions(LAYERS, "t", "x")) for _ in range(2))
    assert first == second


def test_inline_svg_belongs_to_its_page() -> None:
    text = encoding.inline(encoding.svg(lecture_pictures.update_ratios(STEPS, UPDATES, BAND)), "mine", "what it says")
    assert text.startswith("<svg viewBox=")
    assert 'role="img" aria-label="what it says"' in text
    assert "http" not in text
    assert not any(colour in text for colour in encoding.VARIABLES)
    ids = re.findall(r' id="([^"]+)"', text)
    assert ids
    assert all(each.startswith("mine-") for each in ids)
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text)) == set(ids)


def luminance(colour: str) -> float:
    rgb = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture(params=["light", "dark"])
def colours(request: pytest.FixtureRequest) -> dict[str, str]:
    css = (resources.files("makemore_pl.report") / "templates" / "page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", blocks[request.param == "dark"]))


def test_page_has_every_colour_of_the_figures(colours: dict[str, str]) -> None:
    assert set(encoding.VARIABLES.values()) <= set(colours)
    if luminance(colours["--ground"]) == 1:
        assert {variable: colours[variable] for variable in encoding.VARIABLES.values()} == {
            variable: colour for colour, variable in encoding.VARIABLES.items()
        }


def test_text_has_contrast(colours: dict[str, str]) -> None:
    for ground in ("--ground", "--card"):
        for text in ("--ink", "--muted", "--link", "--warning", "--rule"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["--rule"], colours["--ground"]) >= 4.5
    assert contrast(colours["--rule"], colours["--band"]) >= 3
    for line in ("--layer-0", "--layer-1", "--layer-2", "--layer-3", "--layer-4", "--output", "--embedding"):
        assert contrast(colours[line], colours["--ground"]) >= 3, line


def in_deuteranopia(colour: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """CIE Lab of what is seen without the cones for green (Machado, Oliveira and Fernandes 2009)."""
    rgb = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(xyz @ np.clip(np.array(cones) @ linear, 0, 1) / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_layers_are_told_apart_without_green(colours: dict[str, str]) -> None:
    seen = {
        name: in_deuteranopia(colours[f"--{name}"])
        for name in (*(f"layer-{n}" for n in range(5)), "output", "embedding")
    }
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 12, (one, other)


def test_any_alphabet_is_drawn_by_fonts_that_exist_or_as_code_points() -> None:
    words = "中文あ한😀\u0378éñ−"  # U+0378 is no character, so no font has it
    installed = {each for each in words if drawable(each) == each}
    assert {"é", "ñ", "−"} <= installed
    assert drawable("a\u0378b") == "aU+0378b"
    embedding = np.random.default_rng(1).normal(size=(1 + len(words), 3))
    heat_map = comparisons.heat_map({"": np.ones((len(words), 1))}, ["\u0378"], list(words), "中", "中", "中")
    for figure in (comparisons.embeddings_2d(embedding, "." + words), heat_map):
        text = encoding.svg(figure)  # the suite makes errors of matplotlib's warnings of missing glyphs
        assert encoding.png(figure).startswith(b"\x89PNG")
        for each in words:
            assert (each in text) == (each in installed)
            assert (f"U+{ord(each):04X}" in text) == (each not in installed)
