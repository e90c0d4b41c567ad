"""diagnostics.jsonl: what is in a line, and what is left after a kill."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strangers import Classifier, fit, lines, values

from makemore_pl.diagnostics import UpdateStats
from makemore_pl.diagnostics.jsonl import DIAGNOSTICS_FORMAT, JSONLinesLogger
from makemore_pl.diagnostics_file import read_diagnostics

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # advice for loaders that read files
)


@pytest.fixture
def logger(tmp_path: Path) -> JSONLinesLogger:
    return JSONLinesLogger(str(tmp_path / "run"))


def steps(logger: JSONLinesLogger) -> list[int]:
    return [line["step"] for line in lines(logger)]


def test_a_line_of_values(logger: JSONLinesLogger) -> None:
    numbers: dict[str, Any] = {
        "a": 0.1, "b": math.nan, "c": -math.inf, "d": np.float32(0.5), "e": torch.tensor(2), "f": 3, "ä/ü": 1e-30,
    }  # fmt: skip
    logger.log_metrics(numbers, np.int64(7))  # type: ignore[arg-type]
    assert lines(logger) == [
        {
            "version": DIAGNOSTICS_FORMAT,
            "step": 7,
            "values": {"a": 0.1, "b": None, "c": None, "d": 0.5, "e": 2, "f": 3, "ä/ü": 1e-30},
        }
    ]
    assert logger.tags == numbers.keys()
    assert "NaN" not in logger.path.read_text()


def test_all_kinds_come_back_from_the_report_s_reader(logger: JSONLinesLogger) -> None:
    raster = np.random.default_rng(0).random((5, 13)) > 0.5
    edges = np.linspace(-1 / 3, 1 / 3, 4).tolist()
    logger.log_metrics({"train/loss": 2.5, "x": math.nan}, 3)
    logger.log_histograms({"weights/a": (edges, [1, 0, 2])}, 3)
    logger.log_rasters({"saturation/a": raster}, 3)
    logger.log_texts({"samples": ["mia", "ém*"]}, 3)
    logger.log_images({"pictures/a": logger.path.parent / "figures" / "a_3.png"}, 3)
    read = read_diagnostics(logger.path)
    assert read.values["train/loss"] == {3: 2.5}
    assert math.isnan(read.values["x"][3])
    got_edges, got_counts = read.histograms[3]["weights/a"]
    assert got_counts.tolist() == [1, 0, 2]
    np.testing.assert_allclose(got_edges, edges, rtol=1e-6)  # seven digits are kept
    assert (read.rasters[3]["saturation/a"] == raster).all()
    assert read.texts[3]["samples"] == ["mia", "ém*"]
    assert lines(logger)[-1]["images"] == {"pictures/a": os.path.join("figures", "a_3.png")}
    assert logger.tags == {"train/loss", "x", "pictures/a"}


def test_nothing_is_no_line(logger: JSONLinesLogger) -> None:
    logger.log_metrics({}, 1)
    logger.log_rasters({}, 1)
    logger.finalize("success")
    logger.resume_at(0)
    assert not logger.path.parent.exists()


def test_without_a_step_it_is_the_last_one(logger: JSONLinesLogger) -> None:
    logger.log_metrics({"a": 1})
    logger.log_metrics({"a": 1}, 5)
    logger.log_metrics({"b": 1})
    assert steps(logger) == [0, 5, 5]


def test_a_line_is_on_disk_at_once(logger: JSONLinesLogger) -> None:
    for step in range(3):
        logger.log_metrics({"a": step}, step)
        assert steps(logger) == list(range(step + 1))


def write(logger: JSONLinesLogger, text: str) -> None:
    logger.path.parent.mkdir(parents=True, exist_ok=True)
    logger.path.write_text(text, encoding="utf-8")


class TestResuming:
    @pytest.fixture
    def earlier(self, logger: JSONLinesLogger) -> str:
        for step in (0, 1, 1, 5, 10, 20):
            logger.log_metrics({"a": step}, step)
        logger.finalize("failed")
        return logger.path.read_text()

    @pytest.mark.parametrize(("step", "kept"), [(0, []), (5, [0, 1, 1]), (6, [0, 1, 1, 5]), (99, [0, 1, 1, 5, 10, 20])])
    def test_what_comes_again_is_dropped(
        self, logger: JSONLinesLogger, earlier: str, step: int, kept: list[int]
    ) -> None:
        again = JSONLinesLogger(str(logger.path.parent))
        again.resume_at(step)
        again.log_metrics({"a": 0.5}, 30)
        assert steps(again) == [*kept, 30]
        assert not list(logger.path.parent.glob("*.part"))

    def test_first_line_of_a_process_does_it_too(self, logger: JSONLinesLogger, earlier: str) -> None:
        again = JSONLinesLogger(str(logger.path.parent))
        again.log_metrics({"b": 1}, 10)
        again.log_metrics({"c": 1}, 10)
        assert steps(again) == [0, 1, 1, 5, 10, 10]

    @pytest.mark.parametrize(
        "rest", ['{"version": 1, "st', '{"version": 1}\n', '{"step": null}\n', "[1]\n", "\n", "\xff"]
    )
    def test_half_lines_are_dropped(self, logger: JSONLinesLogger, earlier: str, rest: str) -> None:
        logger.path.write_bytes(earlier.encode() + rest.encode("latin-1"))
        again = JSONLinesLogger(str(logger.path.parent))
        again.resume_at(20)
        again.log_metrics({"a": 1}, 20)
        assert steps(again) == [0, 1, 1, 5, 10, 20]

    def test_a_line_that_lacks_only_its_end_is_whole(self, logger: JSONLinesLogger, earlier: str) -> None:
        write(logger, earlier.rstrip("\n"))
        again = JSONLinesLogger(str(logger.path.parent))
        again.resume_at(21)
        again.log_metrics({"a": 1}, 30)
        assert steps(again) == [0, 1, 1, 5, 10, 20, 30]

    def test_generic_module(self, tmp_path: Path) -> None:
        # nothing but the logger knows of an earlier run in the same directory
        for _ in range(2):
            logger = fit(tmp_path, Classifier(), UpdateStats())
        assert list(values(logger)["loss"]) == [0, 1, 2, 3]


def test_lightning_s_side(logger: JSONLinesLogger) -> None:
    assert (logger.name, logger.version, logger.save_dir) == ("jsonl", DIAGNOSTICS_FORMAT, str(logger.path.parent))
    logger.log_hyperparams({"a": 1})
    assert not logger.path.exists()
