"""Run alone: pytest tests/test_report.py"""

import base64
import json
import math
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
import torch
import yaml
from conftest import Compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_command_line import paste

from makemore_pl.command_line import typed
from makemore_pl.config import Config
from makemore_pl.diagnostics_file import read_diagnostics
from makemore_pl.doctor import forward, normalisation
from makemore_pl.doctor.finding import Diagnosis, Finding
from makemore_pl.doctor.plain_words import verdict
from makemore_pl.doctor.recorded_run import read_evidence
from makemore_pl.doctor.update_ratios import typical_ratio
from makemore_pl.doctor.updates import HIGH, LOW
from makemore_pl.report import evolution, health, page, pair_story
from makemore_pl.report.command import differences, overrides
from makemore_pl.report.heat_map_grid import grids
from makemore_pl.report.run_directory import Run, read_embedding, read_overrides, read_run
from makemore_pl.report.section import Frames, Note, Pictures, Table
from makemore_pl.report.summary import Ranking, write_summary
from makemore_pl.report.sweep_directory import (
    Mean,
    correlations,
    failures,
    independent_keys,
    layer_mean,
    ranks,
    read_runs,
    rows,
    spearman,
    unfinished,
    varied_keys,
)
from makemore_pl.report.wording import number, signed
from makemore_pl.sweep.conclusion import pin_cards
from makemore_pl.sweep.job import decisive

ROOT = Path(__file__).parents[1]
DEFAULTS = asdict(Config(run_dir=""))
STEPS = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1999]
DRAWN = [0, 100, 1999]


def write_lines(directory: Path, records: list[dict[str, Any]]) -> None:
    lines = [json.dumps({"version": 1, **record}, allow_nan=False) + "\n" for record in records]
    (directory / "diagnostics.jsonl").write_text("".join(lines))


def histogram(values: np.ndarray[Any, Any], bound: float | None = None) -> dict[str, list[float]]:
    bound = bound or float(abs(values).max())
    counts, edges = np.histogram(values, 50, (-bound, bound))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def records(layers: int, batchnorm: bool, final: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Lines as the callbacks write them in a healthy run."""
    names = [f"layers.{depth}" for depth in range(layers)]
    weights = ["embedding.weight", *(f"{name}.linear.weight" for name in names), "output.linear.weight"]
    written: list[dict[str, Any]] = []
    for step in STEPS:
        loss = final + (3.3 - final) * math.exp(-step / 200)
        values = {"train/loss": loss + 0.1 * rng.normal(), "train/loss_mean": loss, "lr": 0.1, "unheard/of": 1.0}
        for depth, name in enumerate(names):
            values |= {
                f"activation_std/{name}": 0.65 - 0.02 * depth,
                f"saturation/{name}": 0.2 - 0.03 * depth + 0.01 * rng.random(),
                f"dead_units/{name}": 0.0,
                f"activation_grad_std/{name}": 1e-3 * 0.9**depth,
                f"update_data_ratio/{name}.batchnorm.weight": -3.5,
            }
            if batchnorm:
                lag = 1 + 3 * math.exp(-step / 50)
                values |= {f"batchnorm_mean_lag/{name}": lag, f"batchnorm_var_lag/{name}": lag}
        for place, name in enumerate(weights):
            values |= {f"update_data_ratio/{name}": -2.5 + 0.1 * place, f"grad_data_ratio/{name}": 0.05}
        if step == 0:
            values |= {"baseline/uniform": 3.2958, "baseline/unigram": 2.82, "baseline/bigram": 2.45}
        written.append({"step": step, "values": values})
        if step in DRAWN:
            histograms = {f"activations/{name}": histogram(np.tanh(rng.normal(size=640)), 1.0) for name in names}
            histograms |= {f"activation_grads/{name}": histogram(rng.normal(size=640) * 1e-3) for name in names}
            histograms |= {f"weight_grads/{name}": histogram(rng.normal(size=640) * 1e-2) for name in weights}
            written.append({"step": step, "histograms": histograms})
            rasters = {f"saturation/{name}": rng.random((32, 100)) < 0.2 for name in names}
            packed = {tag: base64.b64encode(np.packbits(each).tobytes()).decode() for tag, each in rasters.items()}
            written.append({"step": step, "rasters": {t: {"shape": [32, 100], "bits": b} for t, b in packed.items()}})
            written.append({"step": step, "texts": {"samples": ["emma*", "", "x<script>alert(1)</script>"]}})
    written.append({"step": 1999, "values": {"val/loss": final, "val/perplexity": math.exp(final)}})
    return written


def write_run(directory: Path, watched: bool = True, finished: bool = True, final: float = 2.1, **keys: Any) -> Path:
    """A run directory as training leaves it, made up but for the checkpoint's form. `keys`: config, a__b for a.b."""
    directory.mkdir(parents=True)
    config = asdict(Config(run_dir=str(directory), experiment="kaiming", callbacks={"a": {"_target_": "b"}}))
    for key, value in {"trainer__max_steps": 2000, **keys}.items():
        *groups, last = key.split("__")
        node = config
        for group in groups:
            node = node[group]
        node[last] = value
    if not watched:
        config["callbacks"] = {}
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rng = np.random.default_rng(config["seed"] % 2**32)
    model = config["model"]
    if watched:
        write_lines(directory, records(model["n_layers"], model["batchnorm"] != "none", final, rng))
    if finished:
        metrics = {
            "experiment": config["experiment"],
            "seed": config["seed"],
            "initial_loss": 3.29,
            "train/loss": final - 0.05,
            "val/loss": final,
            "test/loss": final + 0.01,
            "val/perplexity": math.exp(final),
            "steps": 2000,
            "seconds": 4.0,
            "steps_per_second": 500.0,
            "parameters": 11897,
            "uniform_loss": 3.2958,
        }
        (directory / "metrics.json").write_text(json.dumps(metrics))
        checkpoint = {
            "hyper_parameters": {"vocabulary": "abcdefghijklmnopqrstuvwxyz"},
            "state_dict": {"model.embedding.weight": torch.from_numpy(rng.normal(size=(27, 10))).float()},
        }
        (directory / "checkpoints").mkdir()
        torch.save(checkpoint, directory / "checkpoints" / "last.ckpt")
    return directory


def write_sweep(directory: Path) -> Path:
    """Gain x batch size x two seeds; of the last setting one job failed and one never began."""
    for place, (gain, batch_size, seed) in enumerate(
        (gain, batch_size, seed) for gain in (0.5, 3.0) for batch_size in (8, 32) for seed in (1, 2)
    ):
        final = 2.1 + 0.1 * (gain == 0.5) + 0.05 * (batch_size == 8) + 0.01 * seed
        write_run(
            directory / str(place),
            finished=place < 7,
            final=final,
            model__gain=gain,
            data__batch_size=batch_size,
            seed=seed,
        )
    (directory / "7" / "failure.json").write_text(json.dumps({"reason": "step 3: layers.0 is not finite."}))
    hydra = directory / "8" / ".hydra"
    hydra.mkdir(parents=True)
    config = (directory / "7" / "config.yaml").read_text().replace(str(directory / "7"), "${hydra:runtime.output_dir}")
    (hydra / "config.yaml").write_text(config)
    (directory / "8" / "train.log").write_text("first line\nout of memory\n\n")
    (directory / "multirun.yaml").write_text(
        yaml.safe_dump({"hydra": {"overrides": {"task": ["model.gain=0.5,3", "data.batch_size=8,32", "seed=1,2"]}}})
    )
    return directory


VOID = {"meta", "link", "input", "br", "image", "use", "path", "rect"}


class Parsed(HTMLParser):
    """Counts what the tests ask for; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for each, attributes in self.elements if each == tag]


def commands(parsed: Parsed) -> list[str]:
    """What stands on a page to be pasted."""
    return [words for words in parsed.words if words.startswith(sys.executable)]


def told(directory: Path) -> Parsed:
    return check(page.render(page.page_of(directory, DEFAULTS)))


def check(html: str) -> Parsed:
    """Parse a page, and check what every page must fulfil."""
    parsed = Parsed(html)
    assert html.startswith("<!doctype html>")
    assert len(html.encode()) < 3_000_000
    assert not re.search(r"https?:|//cdn|@import|url\((?!#)", html)
    assert parsed.all("html")[0]["lang"] == "en"
    assert len(parsed.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h\d", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for picture in parsed.all("svg"):
        if picture.get("aria-hidden") != "true":
            assert picture["role"] == "img"
            assert len(picture["aria-label"] or "") > 20
    assert not parsed.all("img")
    for _, attributes in parsed.elements:
        for key in ("for", "aria-labelledby"):
            assert attributes.get(key) is None or attributes[key] in ids
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids
        if clip := re.fullmatch(r"url\(#(.*)\)", attributes.get("clip-path") or ""):
            assert clip[1] in ids
    assert "None" not in parsed.text
    assert not re.search(r"\bnan\b", parsed.text)
    return parsed


def test_lines_of_one_step_are_merged(tmp_path: Path) -> None:
    write_lines(
        tmp_path,
        [
            {"step": 5, "values": {"train/loss": 2.0}},
            {"step": 5, "values": {"saturation/layers.0": None, "saturation/layers.1": 0.5}},
            {"step": 0, "values": {"saturation/layers.0": 0.25}},
            {"step": 0, "something": {"new": 1}},
        ],
    )
    read = read_diagnostics(tmp_path / "diagnostics.jsonl")
    steps, layers = read.quantity("saturation")
    assert steps.tolist() == [0, 5]
    assert {name: np.nan_to_num(each, nan=-1).tolist() for name, each in layers.items()} == {
        "layers.0": [0.25, -1],
        "layers.1": [-1, 0.5],
    }
    assert read.tag("train/loss")[1].tolist() == [2]
    assert read.last_step == 5


def test_rasters_come_back(tmp_path: Path) -> None:
    raster = np.random.default_rng(0).random((5, 7)) < 0.5
    bits = base64.b64encode(np.packbits(raster).tobytes()).decode()
    write_lines(tmp_path, [{"step": 3, "rasters": {"saturation/layers.0": {"shape": [5, 7], "bits": bits}}}])
    read = read_diagnostics(tmp_path / "diagnostics.jsonl").rasters[3]["saturation/layers.0"]
    assert (read == raster).all()


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "diagnostics.jsonl"
    path.write_text(
        '{"version": 1, "step": 0, "values": {"train/loss": 3.0}}\n{"version": 1, "step": 1, "values": {"tr'
    )
    assert read_diagnostics(path).values == {"train/loss": {0: 3.0}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"version": 1, "step": 0, "values": {', "line 1"),
        ('{"version": 2, "step": 0, "values": {}}', "version 2"),
        ('{"version": 1, "values": {}}', "line 1, can't be read: step must be a whole number, but is missing or null"),
    ],
)
def test_other_broken_lines_are_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "diagnostics.jsonl"
    path.write_text(line + '\n{"version": 1, "step": 1, "values": {}}\n')
    with pytest.raises(ValueError, match=said):
        read_diagnostics(path)


def test_overrides_without_places(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    typed = ["+experiment=kaiming", "hydra.run.dir=/somewhere", "ckpt_path=/else", "seed=1"]
    (tmp_path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(typed))
    assert read_overrides(tmp_path) == ["+experiment=kaiming", "seed=1"]


def test_embedding_of_a_checkpoint(tmp_path: Path) -> None:
    characters, embedding = read_embedding(write_run(tmp_path / "run"))
    assert characters == ".abcdefghijklmnopqrstuvwxyz"
    assert embedding.shape == (27, 10)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("executed"),)


def test_a_checkpoint_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", watched=False)
    last = run / "checkpoints" / "last.ckpt"
    torch.save(Evil(), last)
    assert "is truncated or damaged (UnpicklingError)" in told(run).text
    last.write_bytes(pickle.dumps(Evil(), 2))
    assert "is truncated or damaged (ValueError)" in told(run).text, "no archive"
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("layers", "batchnorm"), [(1, "none"), (5, "pre_output")])
def test_page_of_a_run(tmp_path: Path, layers: int, batchnorm: str) -> None:
    parsed = told(write_run(tmp_path / "run", model__n_layers=layers, model__batchnorm=batchnorm))
    ids = {attributes.get("id") for _, attributes in parsed.elements}
    scenes = ["activations", "activation_grads", "weight_grads", "update_data_ratio"]
    scenes += [f"saturation-layers-{depth}" for depth in range(layers)]
    assert {f"{scene}-stage" for scene in scenes} <= ids
    (slider,) = parsed.all("input")
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "2", "1")
    frames = [each for each in parsed.all("div") if "frame" in (each.get("class") or "").split()]
    assert [each["data-step"] for each in frames] == ["0", "100", "1,999"]
    assert len([each for each in parsed.all("use") if (each.get("href") or "").endswith("-stage")]) == 3 * len(scenes)
    told_of_it = "batchnorm" in [section["id"] for section in parsed.all("section")]
    assert told_of_it == (batchnorm != "none"), "a section with nothing to say is left out"
    assert "model.n_layers" in parsed.text
    assert "Not measured" not in parsed.text


def test_final_losses_stand_beside_the_lectures(tmp_path: Path) -> None:
    parsed = told(write_run(tmp_path / "run", watched=False, final=2.1080))
    assert "the lecture 2.0377 2.1070 difference +0.0203 +0.0010" in parsed.text
    assert "this run with data.source=names for 2,000: the losses need not agree." in parsed.text


@pytest.mark.parametrize(
    ("typed_in", "said"),
    [
        (["+experiment=kaiming", "data.source=lecture"], "number of steps. Embeddings"),
        (
            ["data=lecture", "model.gain=3", "optim=adam"],
            "number of steps. Other settings differ: model.gain, optim. Embeddings",
        ),
    ],
)
def test_other_settings_than_the_lectures_are_said(tmp_path: Path, typed_in: list[str], said: str) -> None:
    run = write_run(tmp_path / "run", watched=False, data__source="lecture")
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(typed_in))
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"steps": 200_000}))
    assert said in told(run).text


def test_an_experiment_that_the_lecture_has_not(tmp_path: Path) -> None:
    assert "the lecture's published" not in told(write_run(tmp_path / "run", watched=False, experiment="deep")).text


@pytest.mark.parametrize(
    ("loss", "shown"),
    [(2.10801, "2.1080"), (31.04501, "31.0450"), (1811.5298, "1812"), (-3e17, "−3e+17"), (1e5, "1e+05")],
)
def test_large_losses_fit_their_cells(loss: float, shown: str) -> None:
    assert number(loss) == shown
    assert str(Mean(loss, 0.5 * abs(loss), 3)) == f"{shown} ± {number(0.5 * abs(loss))}"
    assert Table("", ["", "loss"], [["a", signed(loss)], ["b", "–"]]).numeric() == [False, True]


def test_page_without_diagnostics_says_what_is_missing(tmp_path: Path) -> None:
    parsed = told(write_run(tmp_path / "run", watched=False, model__batchnorm="pre"))
    assert (
        "This page has nothing on the training loss, distributions, the layers, update:data ratios, BatchNorm and "
        "generated names (it was trained with callbacks=none)." in parsed.text
    )
    assert len(parsed.all("svg")) == 1  # the embeddings
    titles = [section["id"] for section in parsed.all("section")]
    assert titles == ["what-was-run", "final-losses", "embeddings", "not-measured", "how-to-run-it-again"]


def test_page_of_an_unfinished_run(tmp_path: Path) -> None:
    parsed = told(write_run(tmp_path / "run", finished=False))
    assert "it has no metrics.json, and it was last watched at step 1,999" in parsed.text
    assert "the embeddings (There is no checkpoints/last.ckpt)." in parsed.text
    empty = write_run(tmp_path / "empty", finished=False, watched=False)
    assert "nothing was watched yet" in told(empty).text


def test_page_of_partly_measured_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = [
        {"step": 0, "values": {"train/loss": None, "saturation/layers.0": None, "update_data_ratio/a.weight": None}},
        {"step": 0, "histograms": {"activations/layers.0": {"edges": [-1, 1], "counts": [0]}}},
    ]
    write_lines(run, lines)
    assert "Not measured in this run: activation gradients, weight gradients." in told(run).text


def test_words_are_escaped(tmp_path: Path) -> None:
    html = page.render(page.page_of(write_run(tmp_path / "run", experiment="<b>&amp;")))
    assert "x&lt;script&gt;" in html
    assert html.count("<script>") == 1
    assert "<b>" not in html


class TestVerdict:
    FINDINGS = [
        {
            "id": "dead_units", "severity": "warning", "where": "layers.0, layers.1", "step": 5, "value": 0.5,
            "bound": 0.0, "source": "folklore", "message": "Half of layers.0 is dead.", "because_of": "init_gain",
        },
        {"id": "lr_low", "severity": "info", "where": "", "step": 0, "value": None, "bound": None,
         "source": "", "message": "It learns slowly.", "because_of": None},
        {
            "id": "init_gain", "severity": "critical", "where": "layers.0.linear.weight", "step": 1000,
            "value": 3.14159, "bound": 2, "source": "calibrated", "message": "The weights are <too> wide.",
            "because_of": None,
        },
    ]  # fmt: skip

    def told(self, tmp_path: Path, findings: list[dict[str, Any]], **more: Any) -> Parsed:
        run = write_run(tmp_path / "run", watched=False)
        (run / "findings.json").write_text(json.dumps({"version": 1, "findings": findings, **more}))
        return told(run)

    def test_causes_first_and_below_each_what_follows(self, tmp_path: Path) -> None:
        parsed = self.told(tmp_path, self.FINDINGS)
        assert parsed.all("section")[0]["id"] == "verdict"
        assert (
            "1 cause, 1 finding that follows, 1 to know. critical ( init_gain ). The weights are <too> wide. layer 1 "
            "weight · step 1,000 · measured 3.14, bound 2 · calibrated From this follows: warning Units are dead ( "
            "dead_units ). Half of layer 1 is dead. layer 1, layer 2 · step 5 · measured 0.5, bound 0 · folklore info "
            "( lr_low ). It learns slowly. step 0" in parsed.text
        )
        links = [each["href"] or "" for each in parsed.all("a") if "doctor" in (each["href"] or "")]
        assert [link.partition("#")[2] for link in links] == ["init_gain", "dead_units", "lr_low"]
        assert {(tmp_path / "run" / link.partition("#")[0]).resolve() for link in links} == {
            ROOT / "docs" / "doctor.md"
        }
        assert [each.get("class") for each in parsed.all("li") if each.get("class")] == ["critical", "warning", "info"]

    def test_remedies_but_for_refuted_ones(self, tmp_path: Path) -> None:
        remedy = {"finding": "init_gain", "overrides": ["model.gain=1", "data.path='a b'"], "rationale": "It is 3."}
        refuted = {"finding": "init_gain", "overrides": ["seed=1"], "rationale": "Luck.", "verified": "refuted"}
        elsewhere = {"finding": "dead_units", "overrides": [], "rationale": "Draw them narrower."}
        text = self.told(tmp_path, self.FINDINGS, prescriptions=[remedy, refuted, elsewhere]).text
        typed_in = shlex.join(remedy["overrides"])
        assert f"calibrated Change {typed_in} : It is 3. From this" in text
        assert "folklore Draw them narrower." in text
        assert (
            f"Run it with these changes: {sys.executable} {ROOT / 'scripts' / 'train.py'} +experiment=kaiming " in text
        )
        assert f"{typed_in} What was run" in text
        assert "Luck" not in text

    def test_nothing_found_is_said(self, tmp_path: Path) -> None:
        abstained = [
            {"id": "overfitting", "reason": "there is no validation"},
            {"id": "batchnorm_lag", "reason": "there is no BatchNorm", "applies": False},
        ]
        parsed = self.told(tmp_path, [], abstentions=abstained, checked=["a", "b"])
        assert "Healthy: 2 checks found nothing wrong. Not judged overfitting: there is no validation" in parsed.text
        assert "batchnorm_lag" not in parsed.text

    def test_nothing_checked_is_not_called_healthy(self, tmp_path: Path) -> None:
        assert "Nothing could be checked." in self.told(tmp_path, []).text

    def test_findings_are_called_as_the_terminal_calls_them(self, tmp_path: Path) -> None:
        each = Finding("saturation", "warning", "layers.0", 0, 0.5, 0.36, "ours", "Half of them are.")
        diagnosis = Diagnosis((each,), (), ("saturation",))
        run = write_run(tmp_path / "run", watched=False)
        (run / "findings.json").write_text(json.dumps(diagnosis.as_json()))
        (line,) = verdict(diagnosis)
        title, id, severity = re.findall(r"1\. (.+) \((\w+), (\w+)\)\.", line)[0]
        assert f"{severity} {title} ( {id} ). Half of them are." in told(run).text

    def test_no_verdict_where_no_doctor_was(self, tmp_path: Path) -> None:
        assert "verdict" not in [each["id"] for each in told(write_run(tmp_path / "run", watched=False)).all("section")]

    @pytest.mark.parametrize("because_of", ["a", "b", "gone", None])
    def test_every_finding_stands_there_once(self, tmp_path: Path, because_of: str | None) -> None:
        circle = [
            {"id": "a", "severity": "odd", "message": "A here.", "because_of": because_of},
            {"id": "a", "severity": "critical", "message": "A there.", "because_of": because_of},
            {"id": "b", "severity": "warning", "message": "B here.", "because_of": "a"},
        ]
        text = self.told(tmp_path, circle).text
        assert [text.count(each["message"]) for each in circle if each["message"]] == [1, 1, 1]


class TestPair:
    @pytest.fixture
    def pair(self, tmp_path: Path) -> tuple[Path, Path]:
        first = write_run(tmp_path / "first", final=2.2, model__n_layers=3)
        return first, write_run(
            tmp_path / "second", experiment="batchnorm", model__n_layers=5, model__batchnorm="pre", data__batch_size=64
        )

    def test_page(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        parsed = check(page.write_pair(*pair, tmp_path / "pair.html").read_text())
        assert (
            "kaiming beside batchnorm batchnorm differs from kaiming in data.batch_size, model.n_layers and "
            "model.batchnorm. Its validation loss is 2.1000 instead of 2.2000, 0.1000 better. What" in parsed.text
        )
        assert (
            "setting kaiming batchnorm data.batch_size 32 64 model.n_layers 3 5 model.batchnorm none pre" in parsed.text
        )
        assert "val loss 2.2000 2.1000 −0.1000" in parsed.text
        (slider,) = parsed.all("input")
        assert slider["type"] == "range"
        frames = [each for each in parsed.all("div") if "frame" in (each.get("class") or "").split()]
        assert [each["data-step"] for each in frames] == ["0", "100", "1,999"]
        stages = [each["id"] for each in parsed.all("g") if (each.get("id") or "").endswith("-stage")]
        assert stages[:8] == [
            f"{kind}-{owner}-stage"
            for kind in ("activations", "activation_grads", "weight_grads", "update_data_ratio")
            for owner in "ab"
        ]
        assert stages[8:10] == ["saturation-layers-0-a-stage", "saturation-layers-0-b-stage"]
        assert len(stages) == 8 + 3 + 5
        assert "activation std, layer 5 – 0.57 → 0.57" in parsed.text
        assert "parameters 11,897 11,897 +0" in parsed.text

    def test_both_verdicts(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        found = {"id": "init_gain", "severity": "critical", "message": "The weights are wide."}
        for directory, findings in zip(pair, ([found, found], []), strict=True):
            (directory / "findings.json").write_text(json.dumps({"findings": findings, "checked": ["init_gain"]}))
        text = check(page.write_pair(*pair, tmp_path / "pair.html").read_text()).text
        assert "The doctor found init_gain in kaiming and nothing wrong in batchnorm." in text
        assert "Verdicts kaiming: 2 causes. critical ( init_gain ). The weights are wide." in text
        assert "batchnorm: Healthy: 1 checks found nothing wrong." in text

    def test_other_steps_make_losses_incomparable(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        longer = write_run(tmp_path / "longer", experiment="batchnorm", trainer__max_steps=9000)
        text = check(page.render(pair_story.pair_page(read_run(pair[0]), read_run(longer)))).text
        assert (
            "Its validation loss is 2.1000 instead of 2.2000. Their trainer.max_steps differs, so the losses tell "
            "nothing of the other settings." in text
        )

    def test_both_have_the_same_axes(self, pair: tuple[Path, Path]) -> None:
        runs = {"one": read_run(pair[0]), "other": read_run(pair[1])}
        (frames,) = [each for each in evolution.step_by_step(runs) if isinstance(each, Frames)]
        for one, other in zip(frames.scenes[:8:2], frames.scenes[1:8:2], strict=True):
            (left,), (right,) = one.film.stage.axes, other.film.stage.axes
            assert left.get_xlim() == right.get_xlim()
            assert left.get_ylim() == right.get_ylim()

    def test_what_they_are_called(self, tmp_path: Path) -> None:
        runs = [read_run(write_run(tmp_path / place / name, watched=False)) for place, name in ("ax", "ay", "bx")]
        assert pair_story.labels(runs[0], runs[1]) == ("x", "y")
        assert pair_story.labels(runs[0], runs[2]) == ("A", "B")
        assert "Both have the same settings." in check(page.render(pair_story.pair_page(runs[0], runs[2]))).text

    def test_runs_that_measured_nothing(self, tmp_path: Path) -> None:
        runs = [read_run(write_run(tmp_path / name, watched=False, finished=False)) for name in "ab"]
        parsed = check(page.render(pair_story.pair_page(*runs)))
        assert "Neither run has anything on losses, distributions, the layers and the weights." in parsed.text

    def test_script(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        done = script(*pair)
        assert done.stdout == f"{tmp_path / 'first_beside_second.html'}\n", done.stderr
        check((tmp_path / "first_beside_second.html").read_text())
        assert not (pair[0] / "report.html").exists()


class TestUpdatesAreJudgedInTime:
    """A rate that drops tenfold halfway: every ratio falls by 1 there."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Run:
        directory = write_run(tmp_path / "run", trainer__max_steps=10_000)
        steps = [0, 10, 100, *range(500, 10_001, 500)]
        write_lines(
            directory,
            [
                {
                    "step": step,
                    "values": {
                        "lr": 0.1 if step < 5000 else 0.01,
                        "update_data_ratio/layers.0.linear.weight": -2.0 - (step >= 5000) - step / 1e6,
                        "update_data_ratio/output.linear.weight": -1.2 - (step >= 5000),
                        "dead_units/layers.0": 0.5 * (step == 500),
                    },
                }
                for step in steps
            ],
        )
        return read_run(directory)

    def test_start_before_the_drop_and_end(self, run: Run) -> None:
        (table,) = health.updates_table(run)
        assert isinstance(table, Table)
        assert table.columns == [
            "weight",
            "start, to step 1,000",
            "before the drop at 5,000",
            "end",
            "grad:data, first → last",
        ]
        assert [row[1:4] for row in table.rows] == [["−2.00", "−2.00", "−3.01"], ["−1.20", "−1.20", "−2.20"]]

    @pytest.mark.parametrize(("shift", "judged"), [(0.0, "inside"), (0.7, "above"), (-2.0, "below")])
    def test_the_judgement_is_the_doctors(self, run: Run, shift: float, judged: str) -> None:
        """At full rate, the median of both weights: (-2.00 - 1.20) / 2, whatever the end is."""
        for tag, by in run.diagnostics.values.items():
            if tag.startswith("update_data_ratio"):
                by.update({step: value + shift for step, value in by.items()})
        evidence, _ = read_evidence(run.directory)
        assert health.typical(run) == pytest.approx(typical_ratio(evidence) + shift)
        said = f"Here it is {number(-1.6 + shift, 2)}, {judged} the band of {LOW:.1f} to {HIGH:.1f}.".replace("-", "−")
        (note,) = [each for each in health.updates(run) if isinstance(each, Note)]
        assert said in note.text

    def test_means_do_not_foretell_the_drop(self, run: Run) -> None:
        steps, values = run.diagnostics.quantity("update_data_ratio")
        means = evolution.smooth(run, "update_data_ratio", steps, values["output.linear.weight"])
        assert means[steps < 5000] == pytest.approx(-1.2)
        assert means[steps >= 5000] == pytest.approx(-2.2)

    def test_shares_are_not_smoothed(self, run: Run) -> None:
        steps, values = run.diagnostics.quantity("dead_units")
        assert set(evolution.smooth(run, "dead_units", steps, values["layers.0"])) == {0, 0.5}

    def test_a_drop_is_where_it_was_configured(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", trainer__max_steps=10_000)
        write_lines(run, [{"step": step, "values": {"lr": 0.1 if step < 5000 else 0.01}} for step in (0, 4000, 8000)])
        assert evolution.drops_of(read_run(run)).tolist() == [5000]
        constant = write_run(tmp_path / "constant", optim__schedule="constant")
        assert evolution.drops_of(read_run(constant)).size == 0


def test_bounds_in_pictures_are_the_doctors(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", model__n_layers=5, model__batchnorm="pre"))
    drawn = {
        picture.name: {
            float(line.get_ydata()[0]) for line in picture.figure.axes[0].lines if len(line.get_xdata()) == 2
        }
        for section in (health.layers(run), health.updates(run), health.batchnorm(run))
        for block in section
        if isinstance(block, Pictures)
        for picture in block.pictures
    }
    assert drawn["saturation_over_steps"] == {forward.FIRST, forward.LATER}
    assert drawn["batchnorm_mean_lag_over_steps"] == {1.0, normalisation.LAG}
    assert drawn["update_data_ratio_over_steps"] == {-3.0}


def test_how_to_run_it_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", watched=False, data__path="my names.txt")
    train = f"{sys.executable} {ROOT / 'scripts' / 'train.py'}"
    assert f"{train} +experiment=kaiming 'data.path=\"my names.txt\"' trainer.max_steps=2000" in told(run).text
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["+experiment=kaiming", "seed=7"]))
    assert f"{train} +experiment=kaiming seed=7 Versions" in told(run).text


def test_every_command_of_a_page_is_pasted_from_another_directory(tmp_path: Path) -> None:
    there, elsewhere = tmp_path / "where it was typed", tmp_path / "elsewhere"
    for directory in (there, elsewhere):
        directory.mkdir()
    (there / "a b.txt").write_text("\n".join("abcdefghij"))
    record = yaml.safe_dump(
        {"hydra": {"runtime": {"cwd": str(there)}, "overrides": {"task": ["data.path='a b.txt'", "seed=1,2"]}}}
    )
    run = write_run(tmp_path / "run", watched=False, data__path="a b.txt")
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["+experiment=kaiming", "data.path='a b.txt'"]))
    (run / ".hydra" / "hydra.yaml").write_text(record)
    remedy = {"finding": "update_too_large", "overrides": ["optim.lr=0.05"], "rationale": "x"}
    (run / "findings.json").write_text(json.dumps({"findings": [], "checked": ["a"], "prescriptions": [remedy]}))
    for seed in (1, 2):
        write_run(tmp_path / "sweep" / f"seed={seed}", watched=False, data__path="a b.txt", seed=seed)
    (tmp_path / "sweep" / "multirun.yaml").write_text(record)
    write_summary(tmp_path / "sweep", DEFAULTS)

    changed, again = commands(told(run))
    (sweep,) = commands(told(tmp_path / "sweep"))
    job, whole = commands(check((tmp_path / "sweep" / "seed=1" / "report.html").read_text()))
    assert sweep.endswith(" seed=1,2")
    one = sweep.replace(" -m ", " ").removesuffix(",2")  # --cfg shows the config of one job only
    for line, lr in ((changed, 0.05), (again, 0.1), (one, 0.1), (job, 0.1)):
        config = yaml.safe_load(paste(f"{line} --cfg job", cwd=elsewhere))
        assert (config["data"]["path"], config["optim"]["lr"]) == (str(there / "a b.txt"), lr)
    paste(whole, cwd=elsewhere)
    assert "All pictures" not in (tmp_path / "sweep" / "seed=1" / "report.html").read_text()
    assert list(elsewhere.iterdir()) == []


def test_versions_of_the_run_come_before_the_installed_ones(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", watched=False)
    assert f"torch {version('torch')}" in told(run).text  # torch.__version__ may say more: 2.14.1+cu130
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"commit": "abc1234", "versions": {"torch": "0.1"}}))
    assert "Versions of the run package version commit abc1234 torch 0.1" in told(run).text


def test_differences() -> None:
    config = {"data": {"source": "names"}, "model": {"gain": 1.0, "n_layers": 1}, "run_dir": "/x", "experiment": "e"}
    default = {"data": {"source": "names"}, "model": {"gain": None, "n_layers": 1}, "run_dir": "", "experiment": "d"}
    assert differences(config, default) == {"model.gain": (1.0, None)}


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cc", "Cs"])),
    st.sampled_from(
        [
            "null",
            "True",
            "nan",
            "5",
            "1e-3",
            ".5",
            "a,b",
            " a ",
            "a b",
            "a=b",
            "'",
            '\\"',
            "\\",
            "#1",
            "${x}",
            "\\\\${x}",
        ]
    ),
)


@given(st.one_of(VALUES, st.lists(VALUES), st.dictionaries(st.from_regex(r"[a-z]+", fullmatch=True), VALUES)))
def test_values_come_back_from_the_command_line(value: object) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={typed(value)}"])
    assert not override.is_sweep_override()
    assert OmegaConf.to_container(OmegaConf.create({"key": override.value()}), resolve=True) == {"key": value}


def test_a_run_from_its_command_is_the_same_run(compose: Compose, tmp_path: Path) -> None:
    """A job of a sweep: settings, callbacks and loggers, back to what its experiment alone has and away from it."""
    run = compose(
        "+experiment=original", "model.hidden_bias=0", "optim.lr=0.123456789", "data.path='a, b.txt'", "seed=7",
        "~callbacks.samples", "+callbacks.fault={_target_:faults.Fault,how:'a,b'}", "callbacks.figures.pattern='^x$'",
        "logger=jsonl", "trainer.enable_progress_bar=false", run_dir=tmp_path / "sweep" / "job",
    )  # fmt: skip
    start = asdict(compose("+experiment=original"))
    directory = Path(run.run_dir)
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(asdict(run), sort_keys=False))
    record = {"hydra": {"runtime": {"cwd": str(tmp_path / "there")}}}
    (tmp_path / "sweep" / "multirun.yaml").write_text(yaml.safe_dump(record))
    command = overrides(asdict(run), start)
    assert "trainer.enable_progress_bar" not in " ".join(command)
    assert decisive(compose("+experiment=original", *command, run_dir=directory)) == decisive(run)
    assert overrides(asdict(compose("callbacks=none")), asdict(compose())) == ["callbacks=none"]

    done = script(directory)
    assert done.returncode == 0, done.stderr
    shown = check((directory / "report.html").read_text()).text
    placed = [each.replace("a, b.txt", str(tmp_path / "there" / "a, b.txt")) for each in command]
    assert placed != command
    assert shlex.join(["+experiment=original", "hydra.mode=RUN", *placed]) in shown


def test_the_same_run_gives_the_same_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False)
    written = []
    for name in ("one", "two"):
        path = page.write_report(run, tmp_path / name / "page.html", DEFAULTS)
        files = sorted(path.parent.rglob("*.*"))
        written.append({str(file.relative_to(path.parent)): file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert {
        "page.html",
        "figures/loss_over_steps.svg",
        "figures/loss_over_steps.png",
        "figures/four_pictures_0.png",
    } <= set(written[0])
    assert not [name for name in written[0] if name.endswith(".part")]


def test_neither_run_nor_sweep(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is neither a run directory"):
        page.page_of(tmp_path)


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "a: [\n"), ("config.yaml", "5"), ("metrics.json", "{")])
def test_broken_files_are_named(tmp_path: Path, name: str, text: str) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        page.page_of(run)


def script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_script_writes_a_page_and_prints_its_path(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", watched=False)
    done = script(run)
    assert done.stdout == f"{run / 'report.html'}\n", done.stderr
    check((run / "report.html").read_text())


def test_script_refuses_in_one_sentence(tmp_path: Path) -> None:
    done = script(tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\.\n", done.stderr)


def test_report_needs_neither_lightning_nor_hydra_nor_pyplot(tmp_path: Path) -> None:
    write_run(tmp_path / "run", finished=False)
    program = (
        "import sys, pathlib; from makemore_pl.report import page, summary;"
        f"page.render(page.page_of(pathlib.Path({str(tmp_path / 'run')!r})));"
        "print([name for name in ('lightning', 'hydra', 'torch', 'matplotlib.pyplot') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep") / "gains")


@pytest.fixture(scope="module")
def runs(sweep: Path) -> list[Run]:
    return read_runs(sweep)[0]


def test_jobs_are_read_in_order(runs: list[Run]) -> None:
    assert [run.directory.name for run in runs] == [str(number) for number in range(9)]
    assert runs[8].metrics == {}
    assert not runs[0].diagnostics.histograms  # only the values


def test_varied_keys(runs: list[Run]) -> None:
    begun = runs[:8]
    assert varied_keys(begun) == ["data.batch_size", "model.gain", "seed"]
    assert varied_keys(begun[:1]) == []


def test_keys_that_follow_from_others_are_left_out(tmp_path: Path) -> None:
    for name, init in (("original", "normal"), ("kaiming", "kaiming"), ("xavier", "xavier")):
        write_run(tmp_path / name, watched=False, experiment=name, model__init=init)
    runs, _ = read_runs(tmp_path)
    assert varied_keys(runs) == ["model.init", "experiment"]
    assert independent_keys(runs, varied_keys(runs)) == ["experiment"]


def test_means_over_seeds(runs: list[Run]) -> None:
    table = rows(runs[:8], ["data.batch_size", "model.gain"])
    assert [row.label for row in table] == [
        "data.batch_size=8 model.gain=0.5",
        "data.batch_size=32 model.gain=0.5",
        "data.batch_size=8 model.gain=3",
        "data.batch_size=32 model.gain=3",
    ]
    val = table[0].metric("val/loss")
    assert (val.mean, val.std, val.n) == (pytest.approx(2.265), pytest.approx(0.01 / math.sqrt(2)), 2)
    assert table[3].metric("val/loss").n == 1


def test_mean_of_few() -> None:
    assert Mean.of([1.0, None, 3.0, math.nan]) == Mean(2.0, pytest.approx(math.sqrt(2)), 2)
    one, none = Mean.of([1.0]), Mean.of([])
    assert (one.mean, one.n, math.isnan(one.std)) == (1, 1, True)
    assert (math.isnan(none.mean), none.n) == (True, 0)


def test_failures_have_reasons(runs: list[Run]) -> None:
    assert [(run.directory.name, why) for run, why in failures(runs)] == [("7", "step 3: layers.0 is not finite.")]
    assert [run.directory.name for run in unfinished(runs)] == ["8"]


def test_ranks_share_ties() -> None:
    assert ranks([10, 30, 20, 20]).tolist() == [1, 4, 2.5, 2.5]


def test_spearman_is_the_correlation_of_mean_ranks() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 10, 40), rng.normal(size=40)
    mean_ranks = [[np.mean([i for i, other in enumerate(sorted(v)) if other == each]) for each in v] for v in (x, y)]
    assert spearman(x, y) == pytest.approx(np.corrcoef(mean_ranks)[0, 1])
    assert spearman([1, 2, 3], [1, 8, 27]) == pytest.approx(1)
    assert math.isnan(spearman([1, 2], [1, 2]))
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_layer_mean_takes_the_last_watched_step(tmp_path: Path) -> None:
    write_lines(
        tmp_path,
        [
            {"step": 0, "values": {"saturation/layers.0": 0.5}},
            {"step": 150, "values": {"saturation/layers.0": 0.1, "saturation/layers.1": 0.3}},
            {"step": 900, "values": {"saturation/layers.0": 0.7}},
        ],
    )
    read = read_diagnostics(tmp_path / "diagnostics.jsonl")
    assert layer_mean(read, "saturation", 200) == pytest.approx(0.2)
    assert layer_mean(read, "saturation", 0) == 0.5
    assert layer_mean(read, "saturation", None) == pytest.approx((0.7 + 0.3) / 2)
    assert math.isnan(layer_mean(read, "saturation", 100))  # 0 is too long ago
    assert math.isnan(layer_mean(read, "stuck_units", 200))


def test_correlations_with_the_final_loss(tmp_path: Path) -> None:
    for place in range(8):
        final = 2 + place / 10
        run = write_run(tmp_path / str(place), final=final)
        values = {"saturation/layers.0": final, "linear_share/layers.0": -final, "train/loss": 3.0}
        write_lines(run, [{"step": 200, "values": values}])
    runs, _ = read_runs(tmp_path)
    found = {(each.quantity, each.step): (each.rho, each.n) for each in correlations(runs)}
    assert found == {("saturation", 200): (pytest.approx(1), 8), ("linear_share", 200): (pytest.approx(-1), 8)}
    assert correlations(runs[:7]) == []
    said = "Compared: 2 correlations (diagnostics: 2, steps: 1);"
    parsed = told(tmp_path)
    assert said in parsed.text
    assert {"saturation +1.00 – 8", "linear_share −1.00 – 8"} <= set(re.findall(r"[a-z_]+ [+−][\d.]+ – 8", parsed.text))
    assert [table.get("class") for table in parsed.all("table")].count("sortable") == 2
    write_summary(tmp_path)
    assert said in (tmp_path / "summary.md").read_text()


def test_grids(runs: list[Run]) -> None:
    keys = ["data.batch_size", "model.gain"]
    panels, xs, ys, x_name, y_name = grids(rows(runs[:8], keys), keys, lambda row: row.metric("val/loss").mean)
    assert (xs, ys, x_name, y_name) == (["8", "32"], ["0.5", "3"], "data.batch_size", "model.gain")
    assert panels[""] == pytest.approx(np.array([[2.265, 2.215], [2.165, 2.11]]))


def test_grids_of_one_and_of_three_keys(runs: list[Run]) -> None:
    one = rows(runs[:8], ["model.gain"])
    panels, xs, ys, _, _ = grids(one, ["model.gain"], lambda row: row.metric("val/loss").mean)
    assert (xs, ys, panels[""].shape) == (["0.5", "3"], [""], (1, 2))
    three = rows(runs[:8], ["experiment", "data.batch_size", "model.gain"])
    panels, *_ = grids(three, ["experiment", "data.batch_size", "model.gain"], lambda row: 1.0)
    assert list(panels) == ["experiment=kaiming"]


def test_page_of_a_sweep(sweep: Path) -> None:
    parsed = told(sweep)
    assert "9 jobs, 7 of them finished" in parsed.text
    assert "Lowest validation loss: data.batch_size=32 model.gain=3" in parsed.text
    assert "layers.0 is not finite." in parsed.text
    assert f"{ROOT / 'scripts' / 'train.py'} -m model.gain=0.5,3 data.batch_size=8,32 seed=1,2" in parsed.text
    assert "Not finished These jobs run, or were interrupted" in parsed.text
    assert "data.batch_size=32 model.gain=3 seed=2 –" in parsed.text
    assert "out of memory" not in parsed.text
    assert len([table for table in parsed.all("table") if table.get("class") == "sortable"]) == 1
    assert "2.2650 ± 0.0071" in parsed.text
    assert [row["class"] for row in parsed.all("tr") if "class" in row] == ["best"]


def test_pins_of_a_sweep_have_a_colour_for_each_value(sweep: Path, tmp_path: Path) -> None:
    won = Ranking("", ["model.gain", "val loss"], [], "0")
    assert pin_cards(sweep / "0", won)
    query = parse_qs(urlsplit((sweep / "dashboard.url").read_text()).query)
    assert {card["plugin"] for card in json.loads(query["pinnedCards"][0])} == {"scalars"}
    (colours,) = query["runColorGroup"]
    for name, value in (
        ("gain=0.5_seed=1", "0.5"),
        ("batch_size=8_gain=pre_output_seed=1", "pre_output"),
        ("gain=3", "3"),
    ):
        found = re.search(colours.removeprefix("regex:"), name)
        assert found
        assert found[1] == value
    assert not pin_cards(write_run(tmp_path / "job", watched=False), won)


def test_what_was_swept_is_in_order(tmp_path: Path) -> None:
    for name, batch_size in (("batch_size=128", 128), ("batch_size=32", 32), ("batch_size=8", 8)):
        write_run(tmp_path / name, watched=False, data__batch_size=batch_size)
    assert "data.batch_size 8, 32, 128 3" in told(tmp_path).text


def test_page_of_a_sweep_of_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "sweep" / "0", finished=False, watched=False)
    text = told(tmp_path / "sweep").text
    for said in ("Nothing was varied", "No job has finished yet", "Only the seed was varied", "Too few finished jobs"):
        assert said in text


def test_jobs_refused_before_they_had_a_config(tmp_path: Path) -> None:
    (tmp_path / "gain=-1").mkdir()
    (tmp_path / "gain=-1" / "failure.json").write_text(json.dumps({"reason": "model.gain must be greater than 0."}))
    assert "1 run, 0 of them finished" in told(tmp_path).text
    write_run(tmp_path / "gain=1", watched=False)
    parsed = told(tmp_path)
    assert "2 runs, 1 of them finished" in parsed.text
    assert "gain=-1 not known – model.gain must be greater than 0." in parsed.text


def test_script_writes_the_summary_of_a_sweep(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    assert script(sweep, "--output", tmp_path / "elsewhere" / "page.html").returncode == 0
    assert not (sweep / "summary.md").exists()
    done = script(sweep)
    written = [str(sweep / name) for name in ("report.html", "summary.md", "summary.csv", "figures")]
    assert done.stdout.splitlines()[1:-1] == written
    check((sweep / "report.html").read_text())
    text = (sweep / "summary.md").read_text()
    linked = re.findall(r"^!\[.*\]\((figures/.*\.png)\)$", text, re.MULTILINE)
    assert linked == ["figures/map_val_loss.png", "figures/curves.png"]
    assert all((sweep / picture).is_file() for picture in linked)
    heads, first = re.findall(r"^\| (?:job|0) \| (.*) \|$", text, re.MULTILINE)
    row = dict(zip(heads.split(" | "), first.split(" | "), strict=True))
    assert (row["data.batch_size"], row["model.gain"], row["seed"]) == ("8", "0.5", "1")
    assert (row["val loss"], row["train loss"], row["seconds"]) == ("2.2600", "2.2100", "4.0")
    assert float(row["activation_std"]) == 0.65
    assert "batchnorm_gap" not in row
    assert "Failed:\n\n- 7: step 3: layers.0 is not finite.\n\nNot finished:\n\n- 8\n" in text


def test_each_job_of_a_sweep_can_be_opened_from_its_row(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep of #1")
    whole = page.write_report(sweep / "0", defaults=DEFAULTS)
    was = whole.read_text()
    write_summary(sweep, DEFAULTS)
    parsed = check((sweep / "report.html").read_text())
    linked = [unquote(each["href"] or "") for each in parsed.all("a") if "report.html" in (each["href"] or "")]
    assert sorted({*linked}) == [f"{place}/report.html" for place in range(8)]
    assert "2.2650 ± 0.0071 8 0.5 seed 1 , seed 2 2.2150" in parsed.text
    assert whole.read_text() == was, "a page that is up to date stays"
    short = check((sweep / "1" / "report.html").read_text())
    assert f"{ROOT / 'scripts' / 'report.py'} {shlex.quote(str(sweep / '1'))}" in short.text
    assert "activation std" in short.text
    assert len(short.all("svg")) == 2, "the losses, for pictures take time"
    made = (sweep / "1" / "report.html").stat().st_mtime_ns
    write_summary(sweep, DEFAULTS)
    assert (sweep / "1" / "report.html").stat().st_mtime_ns == made
    os.utime(sweep / "1" / "metrics.json", ns=(made + 10**9, made + 10**9))
    write_summary(sweep, DEFAULTS)
    assert (sweep / "1" / "report.html").stat().st_mtime_ns != made, "the job was run again"


def test_runs_that_only_lie_together(tmp_path: Path) -> None:
    """`report.py outputs`: compared where steps and words are the same, and nothing is called a sweep."""
    for name, steps, experiment, final in (
        ("kaiming/a", 2000, "kaiming", 2.1), ("kaiming/b", 2000, "kaiming", 2.3), ("deep/a", 2000, "deep", 2.0),
        ("kaiming/long", 9000, "kaiming", 1.9),
    ):  # fmt: skip
        write_run(
            tmp_path / "outputs" / name, watched=False, trainer__max_steps=steps, experiment=experiment, final=final
        )
    done = script(tmp_path / "outputs")
    assert done.returncode == 0, done.stderr
    parsed = check((tmp_path / "outputs" / "report.html").read_text())
    assert "Runs in outputs 4 runs, 4 of them finished" in parsed.text
    assert "Losses are compared only where steps and words are the same." in parsed.text
    assert "2.0000 deep seed 2147483647 " in parsed.text
    assert "2.2000 ± 0.1414 kaiming kaiming/a , kaiming/b " in parsed.text
    assert "1.9000 kaiming trainer.max_steps=9000 seed 2147483647" in parsed.text
    assert "Lowest validation loss: experiment=deep." in parsed.text
    assert "train.py -m" not in parsed.text
    jobs = re.findall(r"^(.+?),", (tmp_path / "outputs" / "summary.csv").read_text(), re.MULTILINE)
    assert sorted(jobs) == ["deep/a", "job", "kaiming/a", "kaiming/b", "kaiming/long"]


def test_a_sparse_grid_has_no_map(tmp_path: Path) -> None:
    for place in range(4):
        write_run(tmp_path / str(place), watched=False, model__gain=float(place + 1), optim__lr=0.1 * (place + 1))
    text = told(tmp_path).text
    assert "map_val_loss" not in text
    assert "val loss, nats" in told(write_sweep(tmp_path / "sweep")).text


def test_versions_of_the_jobs(tmp_path: Path) -> None:
    for place, torch_version in enumerate(("2.1", "2.2")):
        run = write_run(tmp_path / str(place), watched=False, seed=place)
        metrics = json.loads((run / "metrics.json").read_text())
        recorded = {"commit": None if place else "v1-3-gabc", "versions": {"torch": torch_version, "numpy": "2.0"}}
        (run / "metrics.json").write_text(json.dumps(metrics | recorded))
    assert "Versions of the jobs package version commit v1-3-gabc torch 2.1, 2.2 numpy 2.0" in told(tmp_path).text


def test_run_of_a_sweep_is_a_run(sweep: Path) -> None:
    assert read_run(sweep / "0").name == "kaiming"
