"""What TensorBoard gets: layout, pinned cards, hparams; and a real TensorBoard in a real browser (-m browser)."""

import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import hydra
import numpy as np
import pytest
from conftest import Compose
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from makemore_pl.config import resolve
from makemore_pl.diagnostics import dashboard
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.running import pins
from makemore_pl.train import run

TAGS = {
    "train/loss",
    "train/loss_mean",
    "val/loss",
    "saturation/layers.0",
    "saturation/layers.1",
    "saturation_excess/layers.0",
    "activation_std/layers.0",
    "update_data_ratio/layers.0.linear.weight",
    "update_data_ratio/embedding.weight",
    "grad_data_ratio/output.linear.weight",
    "batchnorm_mean_lag/layers.0",
}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pinned(url: str) -> list[dict[str, Any]]:
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.fragment) == ("http", "localhost:6006", "timeseries")
    query = parse_qs(parts.query)
    assert query["smoothing"] == ["0"]
    cards: list[dict[str, Any]] = json.loads(query["pinnedCards"][0])
    return cards


class TestUrl:
    def test_numbers_only(self) -> None:
        cards = pinned(pins.url(TAGS))
        assert {card["plugin"] for card in cards} == {"scalars"}
        assert [card["tag"] for card in cards] == [
            "train/loss_mean", "val/loss", "activation_std/layers.0", "update_data_ratio/embedding.weight",
            "update_data_ratio/layers.0.linear.weight", "grad_data_ratio/output.linear.weight",
            "saturation/layers.0", "saturation/layers.1", "batchnorm_mean_lag/layers.0",
        ]  # fmt: skip

    PICTURES = {
        f"pictures/{name}"
        for name in (
            "activations", "activation_gradients", "weight_gradients", "update_data_ratio", "saturation",
            "spread_over_depth",
        )
    }  # fmt: skip

    def test_pictures_take_the_place_of_numbers(self) -> None:
        cards = pinned(pins.url(TAGS | self.PICTURES))
        assert [card["tag"] for card in cards] == [
            "train/loss_mean", "val/loss", "pictures/activations", "pictures/activation_gradients",
            "pictures/update_data_ratio", "pictures/weight_gradients", "pictures/saturation",
            "pictures/spread_over_depth", "batchnorm_mean_lag/layers.0",
        ]  # fmt: skip
        assert cards[2] == {
            "plugin": "images", "tag": "pictures/activations", "runId": "defaultExperimentId/.", "sample": 0
        }  # fmt: skip

    def test_pictures_under_each_name_that_the_run_may_have(self) -> None:
        cards = pinned(pins.url(TAGS | self.PICTURES, runs=(".", "kaiming/today")))
        assert [card["runId"] for card in cards if card["tag"] == "pictures/saturation"] == [
            "defaultExperimentId/.", "defaultExperimentId/kaiming/today"
        ]  # fmt: skip

    def test_every_layer_of_a_deep_network(self) -> None:
        layers = [f"layers.{depth}" for depth in range(12)]
        tags = {f"saturation/{layer}" for layer in layers}
        tags |= {f"update_data_ratio/{layer}.{each}" for layer in layers for each in ("linear.weight", "linear.bias")}
        tags |= {f"update_data_ratio/{layer}.batchnorm.weight" for layer in layers}
        assert [card["tag"] for card in pinned(pins.url(tags))] == [
            *(f"update_data_ratio/{layer}.linear.weight" for layer in layers),
            *(f"saturation/{layer}" for layer in layers),
        ]

    def test_a_sweep_has_numbers_and_colours_by_a_setting(self) -> None:
        address = pins.url(TAGS | self.PICTURES, runs=(), colour_by="gain=([^_]+)")
        assert {card["plugin"] for card in pinned(address)} == {"scalars"}
        assert parse_qs(urlsplit(address).query)["runColorGroup"] == ["regex:gain=([^_]+)"]

    def test_nothing_logged(self) -> None:
        assert pinned(pins.url([])) == []

    def test_port(self) -> None:
        assert pins.url(TAGS, port=1234).startswith("http://localhost:1234/?pinnedCards=%5B%7B%22plugin")


def hparams_of(run_dir: Path) -> tuple[Any, Any]:
    """Experiment (columns and metrics) and session (values), as TensorBoard's plugin reads them."""
    contents = EventAccumulator(str(run_dir)).Reload().PluginTagToContent("hparams")
    parsed = {tag: HParamsPluginData.FromString(content) for tag, content in contents.items()}
    return parsed[EXPERIMENT_TAG].experiment, parsed[SESSION_START_INFO_TAG].session_start_info


class TestHparams:
    CONFIG = {
        "experiment": "kaiming", "callbacks": None, "run_dir": "/somewhere", "ckpt_path": None,
        "model": {"gain": None, "batchnorm": "pre"}, "optim": {"lr": 0.1}, "data": {"batch_size": 32, "path": None},
    }  # fmt: skip

    @pytest.fixture
    def logged(self, tmp_path: Path) -> tuple[Any, Any]:
        trainer = Trainer(logger=TensorBoardLogger(tmp_path, name="", version=""), accelerator="cpu")
        dashboard.log_hparams(trainer, self.CONFIG, {"train/loss": 2.0, "val/loss": 2.1})
        return hparams_of(tmp_path)

    def test_columns(self, logged: tuple[Any, Any]) -> None:
        # TensorBoard sorts by these two
        columns = sorted((not info.differs, info.name) for info in logged[0].hparam_infos)
        assert [name for _, name in columns] == [
            "data.batch_size", "experiment", "model.batchnorm", "optim.lr",
        ]  # fmt: skip
        assert [info.name.tag for info in logged[0].metric_infos] == ["final/val_loss", "final/train_loss"]

    def test_values(self, logged: tuple[Any, Any]) -> None:
        session = logged[1].hparams
        assert session["data.batch_size"].number_value == 32
        assert session["model.batchnorm"].string_value == "pre"
        assert not {"model.gain", "data.path", "ckpt_path", "callbacks"} & set(session), "null is not shown"

    def test_first_columns_are_keys_of_the_config(self, small: Compose) -> None:
        config = small()
        for name in dashboard.FIRST_HPARAMS:
            node: Any = config
            for part in name.split("."):
                node = getattr(node, part)


def test_images_fill_a_card(tmp_path: Path) -> None:
    trainer = Trainer(logger=TensorBoardLogger(tmp_path, name="", version=""), accelerator="cpu")
    for step, (height, width) in enumerate([(310, 460), (100, 460), (400, 200), (20, 30)]):
        card = dashboard.card(Image.new("RGB", (width, height), (200, 0, 0)))
        dashboard.log_card(trainer, "picture", dashboard.png(card), card.size, step)
    trainer.loggers[0].experiment.flush()
    drawn = EventAccumulator(str(tmp_path), {"images": 0}).Reload().Images("picture")
    reds = []
    for event in drawn:
        picture = Image.open(io.BytesIO(event.encoded_image_string))
        assert picture.size == (event.width, event.height)
        assert event.width / event.height == pytest.approx(dashboard.CARD, rel=0.03)
        red = np.asarray(picture.convert("RGB"))[:, :, 1] < 128
        reds.append((int(red.any(1).sum()), int(red.any(0).sum())))
    # no pixel is lost
    assert reds == [(310, 460), (100, 460), (400, 200), (20, 30)]


@pytest.mark.parametrize("first", range(6))
def test_a_thin_stroke_is_seen_in_a_card(first: int) -> None:
    """TensorBoard takes the nearest pixel of a picture that is larger than the card: no minus sign may fall between."""
    pixels = np.full((620, 920, 3), 255, dtype=np.uint8)
    pixels[300 + first : 302 + first] = 0
    card = dashboard.card(Image.fromarray(pixels))
    assert card.width <= 2 * dashboard.ROOM
    shown = card.resize((dashboard.ROOM, round(dashboard.ROOM / dashboard.CARD)), Image.Resampling.NEAREST)
    assert np.asarray(shown).min() < 190


def test_text_is_literal(tmp_path: Path) -> None:
    trainer = Trainer(logger=TensorBoardLogger(tmp_path, name="", version=""), accelerator="cpu")
    dashboard.log_text(trainer, "samples", ["mia*", "", "# <b>"], 3)
    trainer.loggers[0].experiment.flush()
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("samples")
    assert event.step == 3
    # a code block of Markdown
    assert event.tensor_proto.string_val[0].decode() == "    mia*\n    (empty)\n    # <b>"


@pytest.fixture(scope="module")
def finished(conf: None, tmp_path_factory: pytest.TempPathFactory, words_file: Path) -> Path:
    """A short run of a deep BatchNorm network with everything on."""
    run_dir = tmp_path_factory.mktemp("dashboard") / "run"
    overrides = [
        "+experiment=deep_batchnorm", f"data.path={words_file}", "trainer=cpu", "trainer.engine=eager",
        "trainer.max_steps=40", "trainer.watch_every=10", "trainer.val_check_interval=20", "data.batch_size=8",
        "model.n_hidden=12", "trainer.enable_progress_bar=false", f"run_dir='{run_dir}'",
    ]  # fmt: skip
    run(resolve(hydra.compose("train", overrides=overrides)), announce=False)
    return run_dir


def test_layout_fits_the_tags(finished: Path) -> None:
    events = EventAccumulator(str(finished)).Reload()
    scalars = events.Tags()["scalars"]
    (content,) = (event.tensor_proto.string_val[0] for event in events.Tensors("custom_scalars__config__"))
    layout = Layout.FromString(content)
    charts = [chart for category in layout.category for chart in category.chart]
    assert [category.title for category in layout.category] == list(dashboard.LAYOUT)
    assert len(charts) == 11
    shown: list[str] = []
    for chart in charts:
        matched = [tag for tag in scalars if any(re.search(regex, tag) for regex in chart.multiline.tag)]
        assert matched, chart.title
        assert len({tag.partition("/")[0] for tag in matched}) == 1 or chart.title == "loss", "one quantity a chart"
        shown += matched
    assert len(shown) == len(set(shown))


def test_hparams_of_a_run_have_final_losses(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    events = EventAccumulator(str(finished)).Reload()
    scalars = events.Tags()["scalars"]
    assert not any("hp_metric" in tag for tag in scalars)
    for tag in ("train/loss", "val/loss", "test/loss"):
        (point,) = events.Scalars(f"final/{tag.replace('/', '_')}")
        assert point.value == pytest.approx(metrics[tag], rel=1e-6)
    names = {info.name for info in hparams_of(finished)[0].hparam_infos}
    assert {"model.n_hidden", "seed", *dashboard.FIRST_HPARAMS} <= names
    assert hparams_of(finished)[1].hparams["model.gain"].number_value == 1
    assert not {"run_dir", "callbacks", "logger"} & names


def test_a_gain_of_null_is_the_one_that_was_used(small: Compose, tmp_path: Path) -> None:
    run(small("logger=tensorboard", "trainer.max_steps=1", run_dir=tmp_path / "run"), announce=False)
    assert hparams_of(tmp_path / "run")[1].hparams["model.gain"].number_value == pytest.approx(5 / 3)


def test_nothing_unexplained_in_a_run_directory(finished: Path) -> None:
    """README's list of what a run leaves, without what Hydra adds."""
    found = {re.sub(r"events\.out.*", "events", path.name) for path in finished.iterdir()}
    assert found == {
        "config.yaml", "metrics.json", "diagnostics.jsonl", "findings.json", "events", "checkpoints", "figures",
    }  # fmt: skip
    pictures = {re.sub(r"_\d+\.png$", "", path.name) for path in (finished / "figures").iterdir()}
    assert pictures == {
        "activations", "activation_gradients", "weight_gradients", "update_data_ratio", "saturation",
        "spread_over_depth",
    }  # fmt: skip


def test_not_a_wall_of_charts(finished: Path) -> None:
    # TensorBoard shows one folded line a quantity below the pinned cards
    scalars = EventAccumulator(str(finished)).Reload().Tags()["scalars"]
    assert len({tag.partition("/")[0] for tag in scalars}) <= 30
    tags = {
        tag
        for line in (finished / "diagnostics.jsonl").read_text().splitlines()
        for tag in json.loads(line).get("values", {})
    }
    assert tags == {tag for tag in scalars if not tag.startswith("final/")}


# --- a real TensorBoard ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(finished: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(finished), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/data/plugin/scalars/tags", timeout=10) as answer:
                    if json.load(answer):
                        break
            except OSError:
                assert process.poll() is None
            assert time.monotonic() < until, "TensorBoard does not start"
            time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
class TestBrowser:
    @staticmethod
    def text(url: str, profile: Path) -> str:
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--virtual-time-budget=30000", "--window-size=1600,1600", "--dump-dom", url,
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    def test_cards_are_pinned(self, served: int, finished: Path, tmp_path: Path) -> None:
        logger = JSONLinesLogger(str(finished))
        for line in logger.path.read_text(encoding="utf-8").splitlines():
            logger.tags |= {tag for kind in ("values", "images") for tag in json.loads(line).get(kind, {})}
        page = self.text(pins.url(logger.tags, served), tmp_path)
        cards = page[page.index("Pinned") : page.index("activation_grad_std")]
        for tag in ("train/loss_mean", "val/loss", "pictures/activations", "pictures/spread_over_depth"):
            assert tag in cards
        assert "image-card" in cards

    def test_hparams(self, served: int) -> None:
        def ask(question: str, **body: Any) -> Any:
            address, header = f"http://localhost:{served}/data/plugin/hparams/{question}", "application/json"
            request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": header})
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)

        columns = [info["name"] for info in ask("experiment", experimentName="")["hparamInfos"]]
        assert columns[:5] == sorted(dashboard.FIRST_HPARAMS)
        metric = {"metric": {"tag": "final/val_loss"}}
        answer = ask(
            "session_groups", colParams=[metric], allowedStatuses=["STATUS_SUCCESS"], startIndex=0, sliceSize=10
        )
        (group,) = answer["sessionGroups"]
        assert group["hparams"]["experiment"] == "deep_batchnorm"
        assert next(each["value"] for each in group["metricValues"] if each["name"]["tag"] == "final/val_loss") > 0
