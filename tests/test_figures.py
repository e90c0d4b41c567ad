"""Run alone: pytest tests/test_figures.py"""

import re
from importlib import resources

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from makemore_pl.figures import canvas, comparisons, lecture_pictures, series

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


def test_running_mean_is_of_near_steps() -> None:
    assert series.running_mean([0, 1, 2, 5], [8.0, 4.0, 2.0, 1.0]).tolist() == [8, 4, 2, 1]
    assert series.running_mean([100, 101, 102], [1.0, 2.0, 6.0]).tolist() == [3, 3, 3]
    assert series.running_mean([100, 101, 102], [1.0, 2.0, 6.0], window=3).tolist() == [1.5, 3, 4]


def test_running_mean_leaves_out_nan() -> None:
    assert series.running_mean([100, 101, 102], [1.0, np.nan, 3.0]).tolist() == [2, 2, 2]
    assert np.isnan(series.running_mean([0], [np.nan])).all()
    assert series.running_mean([], []).size == 0


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


def test_principal_components_of_a_line() -> None:
    scores, shares = series.principal_components([[-3, -4], [0, 0], [3, 4]])
    assert scores[:, 0] == pytest.approx([5, 0, -5]) or scores[:, 0] == pytest.approx([-5, 0, 5])
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
    assert labels(ax) == ["layers.0", "layers.1"]
    assert ax.lines[0].get_ydata().tolist() == [0.25, 0.25, 0.5, 1.0]
    assert (ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()) == ("activations", "activation", "density")
    assert ax.get_xlim() == pytest.approx((-1.02, 1.02))
    assert ax.get_ylim()[0] == 0


def test_distributions_cut_long_tails() -> None:
    ax = panel(lecture_pictures.distributions({"output": ([-100, -2, 0, 2, 100], [1, 998, 1000, 1])}, "", ""))
    assert ax.get_xlim() == pytest.approx((-2.04, 2.04))


def test_update_ratios() -> None:
    ax = panel(lecture_pictures.update_ratios(STEPS, UPDATES, last=1000))
    band = ax.patches[0].get_window_extent().transformed(ax.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((-4, -1.5))
    assert -3 in [line.get_ydata()[0] for line in ax.lines]
    assert labels(ax) == ["embedding", "layers.0"]
    low, high = ax.get_ylim()
    assert low <= -4.5
    assert high >= -1
    assert ax.get_xlim()[1] >= 1000


def test_update_ratios_of_skipped_steps() -> None:
    ax = panel(lecture_pictures.update_ratios([0, 1], {"layers.0": [-np.inf, None]}))
    assert np.isfinite(ax.get_ylim()).all()


def test_steps_are_logarithmic_and_begin_at_0() -> None:
    ax = panel(lecture_pictures.lines([0, 10, 20_000], {"layers.0": [1, 2, 3]}, "saturation", "share"))
    assert ax.get_xscale() == "symlog"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1", "10", "100", "1k", "10k"]
    assert ax.get_xlim()[0] < 0 < 20_000 < ax.get_xlim()[1]


def test_linear_steps() -> None:
    ax = panel(lecture_pictures.lines([0, 100], {"layers.0": [1, 2]}, "", log=False))
    assert ax.get_xscale() == "linear"


def test_lines_leave_gaps_and_draw_near_references_only() -> None:
    ax = panel(lecture_pictures.lines(STEPS, {"a": [1, 2, None, 2, 1, 1]}, "", "", {"near": 2.5, "far": 50}))
    assert np.isnan(ax.lines[0].get_ydata()[2])
    assert [text.get_text() for text in ax.texts] == ["near"]
    assert ax.get_ylim()[1] > 2.5


def test_values_of_many_sizes_are_logarithmic() -> None:
    ax = panel(lecture_pictures.lines([0, 1], {"layers.0": [0.001, 0.01], "output": [1, 10]}, "", log_values=True))
    assert ax.get_yscale() == "log"
    low, high = ax.get_ylim()
    assert 0 < low < 0.001 < 10 < high


def test_a_layer_has_one_colour_everywhere() -> None:
    activations = panel(lecture_pictures.distributions(LAYERS, "", "")).lines[1]
    updates = panel(
        lecture_pictures.lines(STEPS, {"embedding.weight": STEPS, "layers.1.linear.weight": STEPS}, "")
    ).lines[1]
    assert activations.get_color() == updates.get_color() == canvas.LAYERS[1]


def test_deep_layers_differ_from_the_first_ones() -> None:
    assert len({canvas.line_of(f"layers.{depth}") for depth in range(15)}) == 15


def test_short_names_stay_different() -> None:
    assert canvas.short(["embedding.weight", "layers.0.linear.weight"]) == {
        "embedding.weight": "embedding",
        "layers.0.linear.weight": "layers.0",
    }
    twins = ["layers.0.linear.weight", "layers.0.weight"]
    assert canvas.short(twins) == dict(zip(twins, ["layers.0.linear", "layers.0"], strict=True))
    assert canvas.short(["a", "a.weight"]) == {"a": "a", "a.weight": "a.weight"}


def test_saturation_raster_is_white_where_saturated() -> None:
    saturated = np.array([[True, False, False], [True, True, False]])
    ax = panel(lecture_pictures.saturation_raster(saturated, "layers.0"))
    image = ax.images[0]
    assert (image.get_array() == saturated).all()
    assert to_hex(image.to_rgba(np.array([[0.0, 1.0]]))[0, 1]) == "#ffffff"
    assert to_hex(image.to_rgba(np.array([[0.0, 1.0]]))[0, 0]) == "#000000"
    assert ax.get_xlabel() == "3 units across, 2 examples down"


def test_four_pictures() -> None:
    figure = lecture_pictures.four_pictures(LAYERS, LAYERS, {"embedding.weight": UNIT}, STEPS, UPDATES, "step 20")
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "activations, step 20",
        "activation gradients, step 20",
        "weight gradients, step 20",
        "update:data ratio",
    ]
    (legend,) = figure.legends
    assert sorted({text.get_text() for text in legend.get_texts()}) == ["embedding", "layers.0", "layers.1"]
    assert len(legend.get_texts()) == 3


def test_four_pictures_of_nothing_say_so() -> None:
    figure = lecture_pictures.four_pictures({}, {}, {}, [], {})
    assert [ax.texts[0].get_text() for ax in figure.axes[:3]] == ["not measured"] * 3
    canvas.svg(figure)


BASELINES = {"uniform": 3.3, "unigram": 2.8, "bigram": 2.45}


def test_loss_curve() -> None:
    ax = panel(lecture_pictures.loss_curve(STEPS, [3.3, 3.2, 3, 2.8, 2.5, 2.4], [20], [2.35], BASELINES))
    assert labels(ax) == ["train, minibatch", "train, mean", "val"]
    assert [text.get_text() for text in ax.texts] == ["uniform", "unigram", "bigram"]
    assert ax.get_yscale() == "linear"
    assert ax.lines[2].get_ydata().tolist() == [2.35]


def test_loss_curve_of_a_hockey_stick() -> None:
    losses = [27.0, 20, 10, 5, 3, 2.5]
    assert panel(lecture_pictures.loss_curve(STEPS, losses, [], [], BASELINES)).get_yscale() == "log"
    ax = panel(lecture_pictures.loss_curve(STEPS, losses, [20], [2.4], BASELINES, log=False))
    assert ax.get_ylim()[1] < 12  # close up, without the beginning


def test_loss_curve_with_a_mean_of_its_own() -> None:
    ax = panel(lecture_pictures.loss_curve([0, 500], [3, 2.9], [], [], {}, mean=[3, 2.5]))
    assert ax.lines[1].get_ydata().tolist() == [3, 2.5]


def test_loss_curve_of_nothing() -> None:
    canvas.svg(lecture_pictures.loss_curve([], [], [], [], {}))


def test_heat_map() -> None:
    figure = comparisons.heat_map(
        {"pre": [[0.0, 1.0]], "none": [[np.nan, -0.5]]}, ["a", "b"], ["c"], "val loss", "x", "y"
    )
    cells = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert cells == [["0.000", "1.000"], ["–", "−0.500"]]
    inks = [text.get_color() for text in figure.axes[0].texts]
    assert inks == ["#ffffff", "#000000"]  # viridis is dark below and light above
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["a", "b"]
    assert {ax.collections[0].get_clim() for ax in figure.axes} == {(-0.5, 1.0)}


def test_heat_map_of_failures_only() -> None:
    canvas.svg(comparisons.heat_map({"": [[np.nan]]}, ["a"], ["b"], ""))


def test_embeddings_have_characters_as_markers() -> None:
    characters = ".abcdefghijklmnopqrstuvwxyz"
    ax = panel(comparisons.embeddings_2d(np.random.default_rng(0).normal(size=(27, 10)), characters))
    assert [text.get_text() for text in ax.texts] == list(characters[1:])
    assert "PCA" in ax.get_title(loc="left")
    assert labels(ax) == ["vowel", "consonant", "end mark"]


def test_embeddings_of_another_alphabet() -> None:
    ax = panel(comparisons.embeddings_2d(np.eye(4), ".αβγ"))
    assert labels(ax) == ["end mark"]


def test_overlaid_curves() -> None:
    curves = {name: ([0, 10], [place, place]) for place, name in enumerate("abc")}
    ax = panel(comparisons.overlaid_curves(curves, "training loss", "nats", ["b"]))
    assert labels(ax) == ["b"]
    assert [line.get_color() for line in ax.lines] == [canvas.FAINT, canvas.FAINT, canvas.LAYERS[0]]


def test_svg_is_the_same_every_time() -> None:
    first, second = (canvas.svg(lecture_pictures.distributions(LAYERS, "t", "x")) for _ in range(2))
    assert first == second


def test_inline_svg_belongs_to_its_page() -> None:
    text = canvas.inline(canvas.svg(lecture_pictures.update_ratios(STEPS, UPDATES)), "mine", "what it says")
    assert text.startswith("<svg viewBox=")
    assert 'role="img" aria-label="what it says"' in text
    assert "http" not in text
    assert not any(colour in text for colour in canvas.VARIABLES)
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
    assert set(canvas.VARIABLES.values()) <= set(colours)
    if luminance(colours["--ground"]) == 1:
        assert {variable: colours[variable] for variable in canvas.VARIABLES.values()} == {
            variable: colour for colour, variable in canvas.VARIABLES.items()
        }


def test_text_has_contrast(colours: dict[str, str]) -> None:
    for ground in ("--ground", "--card"):
        for text in ("--ink", "--muted", "--link"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["--rule"], colours["--ground"]) >= 4.5
    assert contrast(colours["--rule"], colours["--band"]) >= 3
    for line in ("--layer-0", "--layer-1", "--layer-2", "--layer-3", "--layer-4", "--output", "--embedding"):
        assert contrast(colours[line], colours["--ground"]) >= 3, line


def test_any_alphabet_is_drawn_by_fonts_that_exist_or_as_code_points() -> None:
    words = "中文あ한😀\u0378éñ−"  # U+0378 is no character, so no font has it
    installed = {each for each in words if canvas.drawable(each) == each}
    assert {"é", "ñ", "−"} <= installed
    assert canvas.drawable("a\u0378b") == "aU+0378b"
    embedding = np.random.default_rng(1).normal(size=(1 + len(words), 3))
    heat_map = comparisons.heat_map({"": np.ones((len(words), 1))}, ["\u0378"], list(words), "中", "中", "中")
    for figure in (comparisons.embeddings_2d(embedding, "." + words), heat_map):
        text = canvas.svg(figure)  # the suite makes errors of matplotlib's warnings of missing glyphs
        assert canvas.png(figure).startswith(b"\x89PNG")
        for each in words:
            assert (each in text) == (each in installed)
            assert (f"U+{ord(each):04X}" in text) == (each not in installed)
