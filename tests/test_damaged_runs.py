"""What a damaged file of a run directory does to everyone who reads it: the same sentence, with file and key."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import python
from test_report import DEFAULTS, ROOT, write_run

from makemore_pl.checkup import examine_run, examined_directory
from makemore_pl.config import Config
from makemore_pl.config.stored_config import load_config
from makemore_pl.errors import explain
from makemore_pl.report.page import page_of, write_pair
from makemore_pl.report.summary import write_summary
from makemore_pl.report.sweep_directory import read_runs
from makemore_pl.running.hopeless import read_losses
from makemore_pl.sweep.job import refuse_other_run

Edit = Callable[[Any], object]


def setting(group: str, key: str, value: object) -> Edit:
    return lambda content: content[group].__setitem__(key, value)


def compose(overrides: Sequence[str], run_dir: str = ".") -> Config:
    return Config(run_dir=run_dir)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "sweep" / "damaged")


def sentences(run: Path, *uses: Callable[[Path], object]) -> set[str]:
    said = set()
    for use in uses:
        with pytest.raises(ValueError, match="can't be read") as caught:
            use(run)
        said.add(explain(caught.value))
    return said


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda content: content.clear(), "data must be an object, but is missing or null"),
        (lambda content: content.pop("model"), "model must be an object, but is missing or null"),
        (lambda content: content.update(model=[1]), "model must be an object, but is [1]"),
        (setting("model", "n_layers", "1"), "model.n_layers must be a whole number, but is '1'"),
        (setting("model", "n_layers", None), "model.n_layers must be a whole number, but is missing or null"),
        (setting("model", "n_hidden", True), "model.n_hidden must be a whole number, but is True"),
        (setting("model", "activation", 3), "model.activation must be a text, but is 3"),
        (setting("optim", "lr", "fast"), "optim.lr must be a number, but is 'fast'"),
        (setting("data", "path", ["a"]), "data.path must be a text, but is ['a']"),
        (lambda content: content.update(callbacks={"a": 3}), "callbacks.a must be an object, but is 3"),
        (lambda content: content.update(seed=2.5), "seed must be a whole number, but is 2.5"),
    ],
)
def test_all_refuse_a_config_in_the_same_words(run: Path, edit: Edit, said: str) -> None:
    path = run / "config.yaml"
    content = yaml.safe_load(path.read_text())
    config = load_config(run)
    edit(content)
    path.write_text(yaml.safe_dump(content))
    pair = run.parent / "pair.html"
    assert sentences(
        run, load_config, examine_run, page_of, lambda run: write_pair(run, run, pair),
        lambda run: refuse_other_run(run, config),
    ) == {f"{path} can't be read: {said}."}  # fmt: skip


def test_what_only_the_schema_knows_has_file_and_key_too(run: Path) -> None:
    content = (run / "config.yaml").read_text()
    for old, new, said in (
        ("n_embd: 10", "n_embd: ten", "model.n_embd: Value 'ten' of type 'str' could not be converted to Integer."),
        ("n_embd: 10", "n_emb: 10", "Unknown config key 'model.n_emb'. Did you mean 'model.n_embd'?"),
        ("init: kaiming", "init: x", "model.init must be one of kaiming, xavier, small, normal, got 'x'."),
    ):
        (run / "config.yaml").write_text(content.replace(old, new))
        assert sentences(run, load_config, examine_run) == {f"{run / 'config.yaml'} can't be read: {said}"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.json", {"val/loss": "x"}, "val/loss must be a number, but is 'x'"),
        ("metrics.json", {}, "val/loss must be a number, but is missing or null"),
        ("metrics.json", {"val/loss": 2.1, "steps": "many"}, "steps must be a whole number, but is 'many'"),
        ("metrics.json", {"val/loss": 2.1, "seconds": [1]}, "seconds must be a number, but is [1]"),
        ("metrics.json", {"val/loss": 10**30}, "val/loss must be a number, but is 1000000000000000000000000000000"),
        ("metrics.json", {"val/loss": 2.1, "versions": 3}, "versions must be an object, but is 3"),
        ("diagnostics.jsonl", "version", "step must be a whole number, but is '5'"),
        ("diagnostics.jsonl", {"values": 5}, "values must be an object, but is 5"),
        ("diagnostics.jsonl", {"values": {"lr": "1"}}, "values.lr must be a number, but is '1'"),
    ],
)
def test_doctor_and_report_refuse_the_same_numbers(run: Path, name: str, content: Any, said: str) -> None:
    path, where = run / name, ""
    if name == "metrics.json":
        path.write_text(json.dumps(content))
    else:
        lines = path.read_text().splitlines()
        line = {"version": 1, "step": 5} | ({"step": "5", "values": {}} if content == "version" else content)
        lines[3], where = json.dumps(line), ", line 4,"
        path.write_text("\n".join(lines))
    assert sentences(run, examine_run, page_of) == {f"{path}{where} can't be read: {said}."}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"histograms": {"a/b": {"edges": [0, 1], "counts": [1, 2]}}}, "histograms.a/b must have rising edges"),
        ({"histograms": {"a/b": {"edges": ["0", 1], "counts": [1]}}}, r"histograms.a/b.edges\[0\] must be a number"),
        ({"rasters": {"a/b": {"shape": [9, 9], "bits": "AA=="}}}, "rasters.a/b must have two sizes and that many bits"),
        ({"rasters": {"a/b": {"shape": [9], "bits": "AA=="}}}, "rasters.a/b must have two sizes"),
        ({"texts": {"samples": "emma"}}, "texts.samples must be a list, but is 'emma'"),
    ],
)
def test_pictures_are_not_drawn_from_damaged_lines(run: Path, record: dict[str, Any], said: str) -> None:
    with (run / "diagnostics.jsonl").open("a") as file:
        file.write(json.dumps({"version": 1, "step": 5} | record) + "\n")
    with pytest.raises(ValueError, match=said):
        page_of(run)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"findings": 5}, "findings must be a list, but is 5"),
        ({"findings": [3]}, r"findings\[0\] must be an object, but is 3"),
        ({"findings": [{"id": 3, "severity": "info"}]}, r"findings\[0\].id must be a text, but is 3"),
        (
            {"findings": [], "prescriptions": [{"finding": "a", "overrides": "b"}]},
            "overrides must be a list, but is 'b'",
        ),
        ({"findings": [], "checked": 3}, "checked must be a list, but is 3"),
    ],
)
def test_a_verdict_is_read_whole_or_refused(run: Path, content: dict[str, Any], said: str) -> None:
    (run / "findings.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        page_of(run)


def test_one_damaged_run_takes_nothing_from_the_others(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = run.parent
    write_run(sweep / "whole")
    (run / "config.yaml").write_text("a: [")
    runs, lost = read_runs(sweep)
    said = f"{run / 'config.yaml'} can't be read: it is not YAML of the expected form."
    assert ([run.job for run in runs], lost) == (["whole"], {"damaged": said})
    (ranking,) = write_summary(sweep, DEFAULTS)
    assert ranking.best == "whole"
    assert "- damaged: " in (sweep / "summary.md").read_text()
    assert said.replace("'", "&#39;") in (sweep / "report.html").read_text()
    assert [report.name for report in examined_directory(sweep, compose)] == [str(sweep / "whole")]
    assert said in caplog.text
    (sweep / "whole" / "config.yaml").unlink()
    with pytest.raises(ValueError, match="it has no config"):
        examined_directory(sweep, compose)


def test_a_job_that_stops_reads_damaged_rivals_as_none(run: Path) -> None:
    (run / "diagnostics.jsonl").write_text('{"version": 1, "step": 0, "values": {"train/loss_mean": "x"}}\n')
    assert read_losses(run / "diagnostics.jsonl") == {}


def test_a_misspelt_job_is_no_override(tmp_path: Path) -> None:
    done = python(ROOT / "scripts" / "doctor.py", "swep/seed=1", cwd=tmp_path)
    assert (done.code, done.err) == (1, "error: 'swep/seed=1' is no directory, and no override such as model.gain=1.\n")
