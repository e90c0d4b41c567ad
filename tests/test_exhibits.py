"""Baselines, histograms, pictures, names; the tables of all docstrings; the lecture's panel."""

import base64
import copy
import io
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Compose
from hydra.utils import get_class
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from strangers import Classifier, fit, lines, values
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_callbacks import diagnosed, measured, train
from torch import Tensor, nn

from benchmarks.panel import panel_rows
from makemore_pl import diagnostics
from makemore_pl.callbacks import Baselines, Samples, ngram_losses
from makemore_pl.diagnostics import Histograms, pictures
from makemore_pl.diagnostics.callback import DiagnosticsCallback
from makemore_pl.diagnostics.histograms import BINS, edges_and_counts, histogram
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.diagnostics.pictures import Figures

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # advice for loaders that read files
)

# --- docstrings ------------------------------------------------------------------------------------------------------

CLASSES: dict[str, type[DiagnosticsCallback]] = {
    "activation_stats": diagnostics.ActivationStats,
    "gradient_stats": diagnostics.GradientStats,
    "update_stats": diagnostics.UpdateStats,
    "batchnorm_stats": diagnostics.BatchNormStats,
    "baselines": Baselines,
    "histograms": Histograms,
    "figures": Figures,
    "samples": Samples,
    "doctor": diagnostics.Doctor,
}
BROUGHT = ("activation_stats", "gradient_stats", "update_stats", "batchnorm_stats")
"""The callbacks that the doctor adds if the trainer has none of their kind."""
OTHERS = {"train/loss", "train/loss_mean", "lr", "val/loss", "val/perplexity"}


def table(documented: type) -> set[str]:
    rows = re.findall(r"^ *\| (\S+) \| (.+) \| (.+) \|$", documented.__doc__ or "", re.MULTILINE)
    tags = [tag for tag, meaning, unit in rows if tag != "tag"]
    assert len(tags) == len(set(tags))
    return set(tags)


def written(run_dir: Path) -> tuple[set[str], set[str]]:
    """Tags in TensorBoard's events and in diagnostics.jsonl."""
    shown = EventAccumulator(str(run_dir)).Reload().Tags()
    board = {*shown["scalars"], *shown["histograms"], *shown["images"]}
    board |= set(shown["tensors"])
    kinds = ("values", "histograms", "rasters", "images", "texts")
    json_lines = {tag for line in lines(JSONLinesLogger(str(run_dir))) for kind in kinds for tag in line.get(kind, {})}
    return board - OTHERS, json_lines - OTHERS


@pytest.mark.parametrize("name", CLASSES)
def test_docstring_lists_exactly_the_tags_that_are_written(small: Compose, tmp_path: Path, name: str) -> None:
    board: set[str] = set()
    json_lines: set[str] = set()
    for activation in ("tanh", "relu"):
        config = diagnosed(
            small, "logger=tensorboard", f"model.activation={activation}",
            f"model.batchnorm={'none' if name == 'baselines' else 'pre'}",
            "trainer.gradient_clip_val=0.5", f"trainer.max_steps={500 if name == 'baselines' else 6}",
            "optim=adam", "optim.lr=0.03", "trainer.watch_every=20", f"model.n_layers={3 if name == 'figures' else 1}",
            only=(name, "update_stats") if name == "figures" else (name,), run_dir=tmp_path / activation,
        )  # fmt: skip
        trainer, module, _ = train(config)
        watching = [each for each in trainer.callbacks if isinstance(each, DiagnosticsCallback)]  # type: ignore[attr-defined]
        assert CLASSES[name] in map(type, watching)
        parameters = {each.removeprefix("model.") for each, _ in module.named_parameters()}
        for tags, found in zip((board, json_lines), written(tmp_path / activation), strict=True):
            for tag in found:
                quantity, _, owner = tag.partition("/")
                if name == "figures" and quantity in ("update_data_ratio", "unmoved"):
                    continue
                kind = (
                    "<parameter>"
                    if owner in parameters
                    else "<layer>"
                    if owner in ("layers.0", "layers.1", "output")
                    else owner
                )
                tags.add(f"{quantity}/{kind}" if owner else quantity)
    if name == "doctor":
        brought = set.union(*(table(CLASSES[each]) for each in BROUGHT))
        assert brought <= board
        assert (board - brought, json_lines - brought) == (table(diagnostics.Doctor), set())
        return
    assert json_lines == table(CLASSES[name])
    # the tag of the raster is that of a number, and TensorBoard shows the picture of it instead
    assert board == table(CLASSES[name]) - ({"saturation/<layer>"} if name == "histograms" else set())


def test_docs_explain_every_tag() -> None:
    text = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8").replace("\\<", "<")
    for each in diagnostics.__all__:
        kind = getattr(diagnostics, each)
        assert f"**{each}**" in text
        assert [tag for tag in table(kind) if f"{tag} |" not in text and f"{tag}," not in text] == []
        assert f"callbacks=[{each}()" in kind.__doc__, "three lines to copy"


def test_every_callback_of_the_default_config_is_tested(small: Compose) -> None:
    targets = {name: get_class(node["_target_"]) for name, node in small("callbacks=diagnostics").callbacks.items()}
    assert targets == CLASSES, "each of them, and no other"


# --- baselines -------------------------------------------------------------------------------------------------------


def test_ngram_losses_by_hand() -> None:
    # aab, ba: contexts of two, end mark 0
    x = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 2], [0, 0], [0, 2], [2, 1]])
    y = torch.tensor([1, 1, 2, 0, 2, 1, 0])
    pairs = list(zip(x[:, -1].tolist(), y.tolist(), strict=True))
    before, after, both = Counter(a for a, _ in pairs), Counter(b for _, b in pairs), Counter(pairs)
    unigram = -sum(math.log(after[b] / 7) for _, b in pairs) / 7
    bigram = -sum(math.log(both[a, b] / before[a]) for a, b in pairs) / 7
    expected = {"uniform": math.log(3), "unigram": unigram, "bigram": bigram}
    # counted out: 0 -> a, b; a -> a, b, .; b -> ., a
    assert bigram == pytest.approx((2 * math.log(2) + 3 * math.log(3) + 2 * math.log(2)) / 7)
    assert unigram == pytest.approx((3 * math.log(7 / 3) + 4 * math.log(7 / 2)) / 7)
    assert ngram_losses(x, y, 3) == pytest.approx(expected)


def test_an_unseen_character_costs_nothing() -> None:
    losses = ngram_losses(torch.zeros(4, 1, dtype=torch.int64), torch.tensor([1, 1, 2, 2]), 5)
    assert losses == pytest.approx({"uniform": math.log(5), "unigram": math.log(2), "bigram": math.log(2)})


def test_baselines_are_passed_once(small: Compose) -> None:
    length = ("trainer.watch_every=20", "trainer.max_steps=500")
    config = diagnosed(small, "optim=adam", "optim.lr=0.03", *length, only=("baselines",))
    found = measured(train(config)[0])
    # means over a hundred steps or more, from means of strides weighted by their lengths
    losses, first, total, seen = {}, 0, 0.0, 0
    for step, number in found["train/loss_mean"].items():
        total, seen = total + number * (step + 1 - seen), step + 1  # type: ignore[operator]
        if seen - first >= 100:
            losses[step], first, total = total / (seen - first), seen, 0.0
    assert len(losses) > 3
    baselines = {name: found[f"baseline/{name}"][0] for name in ("uniform", "unigram", "bigram")}
    assert baselines["uniform"] > baselines["unigram"] > baselines["bigram"]  # type: ignore[operator]
    for name in baselines:
        below = min(step for step, number in losses.items() if number < baselines[name])  # type: ignore[operator]
        assert found[f"baseline_passed/{name}"] == {below: below}


def test_baselines_abstain_from_other_data(tmp_path: Path) -> None:
    assert set(values(fit(tmp_path, Classifier(), Baselines()))) == {"loss"}


# --- histograms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [None, 1.0])
def test_histogram_is_torch_s(bound: float | None) -> None:
    # in float64, so that no value lies within rounding of an edge
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0)).tanh()
    edges, counts = edges_and_counts(histogram(x, bound).float().numpy())
    reach = bound or x.abs().max().item()
    expected, _ = torch.histogram(x.double(), BINS, range=(-reach, reach))
    assert counts == expected.int().tolist()
    assert (edges[0], edges[-1], len(edges)) == (pytest.approx(-reach), pytest.approx(reach), BINS + 1)


@pytest.mark.parametrize(
    ("x", "reach", "count"),
    [
        ([0.0, 0.0], 1.0, 2),
        ([], 1.0, 0),
        ([math.nan, math.inf, -math.inf, 2.0], 2.0, 1),
        ([math.nan], 1.0, 0),
        ([-3.0, 3.0], 3.0, 2),
        ([1e-30, -1e-30], 1e-30, 2),
    ],
)
def test_histogram_of_what_is_hard(x: list[float], reach: float, count: int) -> None:
    edges, counts = edges_and_counts(histogram(torch.tensor(x)).float().numpy())
    assert edges[-1] == pytest.approx(reach)
    assert sum(counts) == count
    assert len(counts) == BINS


def test_histograms_count_every_element(tmp_path: Path) -> None:
    board, json_lines = TensorBoardLogger(tmp_path, name="", version=""), JSONLinesLogger(str(tmp_path))
    module = Classifier()
    fit(tmp_path, module, Histograms(), logger=[board, json_lines], max_steps=8)
    found: dict[tuple[str, int], Any] = {
        (tag, line["step"]): each for line in lines(json_lines) for tag, each in line.get("histograms", {}).items()
    }
    elements = {
        "activations/2": 8 * 64,
        "activation_grads/5": 8 * 8,
        "weights/4.weight": 512,
        "weight_grads/0.weight": 36,
    }
    for tag, count in elements.items():
        assert [step for name, step in found if name == tag] == [0, 1, 2, 5, 7], "log-spaced, and the last"
        for step in (0, 1, 2, 5, 7):
            assert sum(found[tag, step]["counts"]) == count
    assert found["activations/5", 0]["edges"][0] == -1, "tanh: always all of its range"
    final = edges_and_counts(histogram(module.net[4].weight).float().numpy())[1]  # type: ignore[index]
    assert found["weights/4.weight", 7]["counts"] == final, "after the step"
    shown = EventAccumulator(str(tmp_path), {"histograms": 0}).Reload().Histograms("weights/4.weight")
    assert [event.step for event in shown] == [0, 1, 2, 5, 7]
    assert shown[-1].histogram_value.bucket == final
    assert shown[-1].histogram_value.num == 512


def test_raster_is_the_lecture_s(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.tanh, self.out = nn.Linear(36, 9), nn.Tanh(), nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.activation = self.tanh(4 * self.linear(x.flatten(1)))
            return self.out(self.activation)  # type: ignore[no-any-return]

    net = Wide()
    logger = fit(tmp_path, Classifier(net), Histograms(), max_steps=1)
    (raster,) = (line["rasters"]["saturation/tanh"] for line in lines(logger) if "rasters" in line)
    assert raster["shape"] == [8, 9], "examples down, units across"
    bits = np.unpackbits(np.frombuffer(base64.b64decode(raster["bits"]), np.uint8), count=72)
    saturated = net.activation.detach().abs() > 0.97
    assert 0 < saturated.sum() < 72
    assert bits.reshape(8, 9).tolist() == saturated.int().tolist()


# --- pictures and names ----------------------------------------------------------------------------------------------


def test_pictures(small: Compose, tmp_path: Path) -> None:
    config = diagnosed(
        small, "logger=tensorboard", "trainer.max_steps=12", "model.batchnorm=pre", only=("figures", "update_stats")
    )
    train(config)
    run_dir = tmp_path / "run"
    names = {"activations", "activation_gradients", "weight_gradients", "saturation"}
    files = {path.name for path in (run_dir / "figures").iterdir()}
    assert files == {f"{name}_{step}.png" for name in names for step in (0, 11)} | {"update_data_ratio_11.png"}
    events = EventAccumulator(str(run_dir), {"images": 0}).Reload()
    for name in names:
        shown = events.Images(f"pictures/{name}")
        assert [event.step for event in shown] == [0, 11]
        for event in shown:
            picture = Image.open(io.BytesIO(event.encoded_image_string))
            assert picture.size == (event.width, event.height)
            assert len(picture.convert("L").getcolors() or ()) > 1, "not blank"
            file = run_dir / "figures" / f"{name}_{event.step}.png"
            assert file.read_bytes() == event.encoded_image_string, "one PNG serves both"
    paths = [line["images"] for line in lines(JSONLinesLogger(str(run_dir))) if "images" in line]
    assert paths[1]["pictures/update_data_ratio"] == str(Path("figures", "update_data_ratio_11.png"))


def test_pictures_of_ratios_that_come_and_go() -> None:
    callback = Figures()
    callback.histograms, callback.rasters = {}, {}
    for step, numbers in enumerate([{"update_data_ratio/a": -2.0}, {"update_data_ratio/b": -1.0}, {"other/c": 0.0}]):
        callback.measured(None, None, step, numbers, {})  # type: ignore[arg-type]
    state = callback.state_dict()
    assert state["steps"] == [0, 1]
    assert list(state["ratios"]) == ["update_data_ratio/a", "update_data_ratio/b"]
    assert [[repr(number) for number in series] for series in state["ratios"].values()] == [
        ["-2.0", "nan"],
        ["nan", "-1.0"],
    ]


def test_pictures_at_other_steps(tmp_path: Path) -> None:
    fit(tmp_path, Classifier(), Figures(steps=[1, 99]), max_steps=3)
    assert {path.name for path in (tmp_path / "figures").glob("activations_*")} == {
        "activations_1.png",
        "activations_2.png",
    }


class Fails(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 1:
            raise RuntimeError("on purpose")
        return super().training_step(batch, batch_idx)


def test_a_failed_run_keeps_its_first_pictures(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(tmp_path, Fails(), Figures())
    assert (tmp_path / "figures" / "activations_0.png").stat().st_size > 0


def test_what_drawing_stumbles_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(pictures, "draw", fails)
    callback = Figures()
    fit(tmp_path, Classifier(), callback)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("makemore_pl")]
    assert told == ["Figures leaves out what it shows: OSError: no space left."], "once, and training goes on"
    monkeypatch.undo()
    copy.deepcopy(callback)
    fit(tmp_path, Classifier(), callback, max_steps=3)
    assert (tmp_path / "figures" / "activations_2.png").exists()


def test_samples(small: Compose, tmp_path: Path) -> None:
    config = diagnosed(
        small, "logger=tensorboard", "trainer.watch_every=500", "trainer.max_steps=1011", only=("samples",)
    )
    _, _, datamodule = train(config)
    texts = {
        line["step"]: line["texts"]["samples"]
        for line in lines(JSONLinesLogger(str(tmp_path / "run")))
        if "texts" in line
    }
    assert list(texts) == [0, 1000, 1010]
    for names in texts.values():
        assert len(names) == 10
        assert max(map(len, names)) <= 20
        assert all(name.endswith("*") == (name.removesuffix("*") in datamodule.words) for name in names)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        Samples(0)


def test_samples_leave_what_is_not_finite_to_others(small: Compose) -> None:
    # the first step throws the parameters beyond all bounds: the run ends with the module's own sentence
    config = diagnosed(small, "optim.lr=1e38", "trainer.watch_every=1", "trainer.max_steps=5", only=("samples",))
    with pytest.raises(FloatingPointError, match=r"^step 1: .* is not finite"):
        train(config)


# --- parity ----------------------------------------------------------------------------------------------------------


def test_lecture_s_panel(compose: Compose, lecture_names: Path, tmp_path: Path) -> None:
    """Saturation, spread of activations and gradients, grad:data ratios of its deep network after step 1,000.

    With the lecture's unbiased variance its loop prints the published numbers, to the last digit; with the biased one,
    which nn.BatchNorm1d divides by, those of the column `biased`, up to 14 % from them for saturation (3.16 for 2.78 %)
    and 1.3 % for all else. Ours must be these. Saturation is a count of 3,200 activations, of which float32 may move
    one or two (0.03 % each) over 1,000 steps; the other tolerance is their last printed digit and as much again.
    """
    config = diagnosed(
        compose, "+experiment=deep_batchnorm", "data=lecture", f"data.path={lecture_names}", "seed=2147483647",
        "optim.schedule=constant", "trainer=cpu", "trainer.engine=eager", "trainer.max_steps=1001",
        "trainer.enable_progress_bar=false", only=("activation_stats", "gradient_stats"),
    )  # fmt: skip
    train(config)
    rows = panel_rows(tmp_path / "run" / "diagnostics.jsonl")
    assert Counter(row.quantity for row in rows) == {
        "saturation": 5, "activation_std": 5, "activation_grad_std": 5, "grad_data_ratio": 7
    }  # fmt: skip
    for row in rows:
        if row.quantity == "saturation":
            assert row.ours == pytest.approx(row.biased, abs=0.07), row
            assert row.ours == pytest.approx(row.published, rel=0.2), row
        else:
            assert row.ours == pytest.approx(row.biased, rel=3e-4), row
            assert row.ours == pytest.approx(row.published, rel=0.016), row


def test_panel_names_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "diagnostics.jsonl"
    path.write_text('{"version": 1, "step": 1000, "values": {"train/loss": 2.3}}\n')
    with pytest.raises(ValueError, match=r"diagnostics.jsonl has no activation_grad_std/layers.0 at step 1000"):
        panel_rows(path)
