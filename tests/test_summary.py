"""What a summary compares, what it leaves out, and how it is written down."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from makemore_pl.config import Config
from makemore_pl.report.page import render
from makemore_pl.report.run_directory import Run, read_run
from makemore_pl.report.summary import _escaped, write_summary
from makemore_pl.report.sweep_directory import comparable, correlations, read_runs
from makemore_pl.report.sweep_story import sweep_page_of


def write(job: Path, loss: float | None, saturation: float = 0.1, words: str = "a" * 64, **settings: Any) -> None:
    """Write the directory of a job. Settings are data_batch_size, trainer_max_steps, model_gain, seed, ..."""
    config: dict[str, Any] = asdict(Config(run_dir=str(job)))
    config["trainer"]["max_steps"] = 1000
    for key, value in settings.items():
        group, _, name = key.partition("_")
        if name:
            config[group][name] = value
        else:
            config[group] = value
    job.mkdir(parents=True)
    (job / "config.yaml").write_text(json.dumps(config))
    if loss is not None:
        (job / "metrics.json").write_text(json.dumps({"val/loss": loss, "train/loss": loss, "words_sha256": words}))
    line = {"version": 1, "step": 200, "values": {"saturation/layers.0": saturation}}
    (job / "diagnostics.jsonl").write_text(json.dumps(line) + "\n")


def test_only_equal_steps_and_words_are_compared(tmp_path: Path) -> None:
    for steps, words in ((3000, "a"), (200_000, "a"), (200_000, "b")):
        for gain in (1.0, 2.0):
            write(
                tmp_path / f"{steps}{words}{gain}",
                gain + steps / 1e6,
                words=words * 64,
                trainer_max_steps=steps,
                model_gain=gain,
            )
    write(tmp_path / "unfinished", None, trainer_max_steps=3000, model_gain=3.0)
    groups = comparable(read_runs(tmp_path)[0])
    assert {label: len(runs) for label, runs in groups.items()} == {
        "trainer.max_steps=200000, words=names aaaaaaaa": 2,
        "trainer.max_steps=200000, words=names bbbbbbbb": 2,
        "trainer.max_steps=3000, words=names aaaaaaaa": 3,
    }
    assert next(iter(groups)) == "trainer.max_steps=3000, words=names aaaaaaaa", "the largest first"
    rankings = write_summary(tmp_path)
    assert [ranking.columns[0] for ranking in rankings] == ["model.gain"] * 3
    assert [[row[:2] for row in ranking.cells] for ranking in rankings] == [
        [["1", "1.0030"], ["2", "2.0030"], ["3", "–"]],
        [["1", "1.2000"], ["2", "2.2000"]],
        [["1", "1.2000"], ["2", "2.2000"]],
    ]
    assert [ranking.best for ranking in rankings] == ["3000a1.0", "200000a1.0", "200000b1.0"]
    page = render(sweep_page_of(tmp_path))
    assert page.count("Lowest validation loss: model.gain=1.") == 3
    assert len({path.name for path in (tmp_path / "figures").glob("map_val_loss*.png")}) == 3


def test_one_kind_of_jobs_needs_no_label(tmp_path: Path) -> None:
    write(tmp_path / "a", 2.0)
    write(tmp_path / "b", None)
    (tmp_path / "c" / "config.yaml").mkdir(parents=True)
    assert [*comparable(read_runs(tmp_path)[0])] == [""]


def test_correlations_are_within_equal_batch_sizes(tmp_path: Path) -> None:
    """Small batches saturate more and end worse; within a batch size more saturation is better, which is reported."""
    for batch_size, base in ((8, 2.5), (128, 2.0)):
        for place in range(8):
            job = tmp_path / f"{batch_size}_{place}"
            write(job, base - 0.01 * place, base + 0.01 * place, data_batch_size=batch_size, seed=place)
    (found,) = correlations(read_runs(tmp_path)[0])
    assert (found.quantity, found.step, found.n) == ("saturation", 200, 16)
    assert found.rho == pytest.approx(-1.0)
    everything_together = [
        Run(run.directory, {}, run.metrics, run.diagnostics, None, []) for run in read_runs(tmp_path)[0]
    ]
    assert correlations(everything_together)[0].rho > 0.5, "what mixing them would have taught"
    (tmp_path / "8_0" / "metrics.json").unlink()
    (tmp_path / "128_0" / "metrics.json").unlink()
    assert correlations(read_runs(tmp_path)[0]) == []
    assert "Too few finished jobs to correlate: 8 are needed with diagnostics and equal steps" in render(
        sweep_page_of(tmp_path)
    )


def test_summary_is_markdown_that_shows_what_was_written(tmp_path: Path) -> None:
    evil = "a|b\n# <b>*x*</b> [l](javascript:x) `c` $m$ &amp; \\ _u_ gain_x"
    write(tmp_path / "good", 2.0, model_init="x|<script>")
    write(tmp_path / "bad", None, model_init="y")
    (tmp_path / "bad" / "failure.json").write_text(json.dumps({"reason": evil, "command": "", "traceback": ""}))
    write_summary(tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert "<script>" not in text.replace("\\<", "")
    assert (
        "- bad: a\\|b \\# \\<b\\>\\*x\\*\\</b\\> \\[l\\](javascript:x) \\`c\\` \\$m\\$ \\&amp; \\\\ \\_u\\_ gain_x"
        in text
    )
    assert not [line for line in text.splitlines() if line.startswith("#")][1:], "one heading"


def test_summary_tells_who_stopped_early(tmp_path: Path) -> None:
    write(tmp_path / "a", 2.0)
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text()) | {"stopped_by": "EarlyStopping"}
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(metrics))
    write_summary(tmp_path)
    with (tmp_path / "summary.csv").open() as file:
        assert next(csv.DictReader(file))["stopped_by"] == "EarlyStopping"
    assert "EarlyStopping" in (tmp_path / "summary.md").read_text()


def test_summary_has_the_doctor_s_first_root_of_every_job(tmp_path: Path) -> None:
    note = {"id": "frozen_parameters", "severity": "info", "because_of": None}
    follows = {"id": "dead_units", "severity": "critical", "because_of": "update_too_large"}
    root = {"id": "update_too_large", "severity": "critical", "because_of": None}
    found = {"ill": [note, follows, root, root | {"id": "saturation"}], "healthy": [note], "unseen": None}
    for place, (name, findings) in enumerate(found.items()):
        write(tmp_path / name, 2.0 + place, model_gain=float(place))
        if findings is not None:
            (tmp_path / name / "findings.json").write_text(json.dumps({"version": 1, "findings": findings}))
    (ranking,) = write_summary(tmp_path)
    assert ranking.columns[-1] == "finding"
    assert [row[-1] for row in ranking.cells] == ["update_too_large", "", ""]
    with (tmp_path / "summary.csv").open() as file:
        assert {row["job"]: row["finding"] for row in csv.DictReader(file)} == {
            "ill": "update_too_large",
            "healthy": "",
            "unseen": "",
        }
    (line,) = (line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("| ill"))
    assert line.endswith("| update_too_large |")


def test_where_nobody_is_ill_no_column_says_so(tmp_path: Path) -> None:
    write(tmp_path / "a", 2.0)
    assert "finding" not in write_summary(tmp_path)[0].columns
    assert "finding" not in (tmp_path / "summary.md").read_text()


def test_escaping_changes_no_plain_text() -> None:
    assert _escaped("gain=0.5_batch_size=8") == "gain=0.5_batch_size=8"
    assert _escaped("_x_ a_b") == "\\_x\\_ a_b"


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    write(tmp_path / "a", 2.0)
    for name in ("metrics.json", "config.yaml"):
        whole = (tmp_path / "a" / name).read_text()
        for content in ("[" * 10**5, "3", '"x"', "[1]"):
            (tmp_path / "a" / name).write_text(content)
            with pytest.raises(ValueError, match=f"{name} can't be read"):
                read_run(tmp_path / "a")
        (tmp_path / "a" / name).write_text(whole)
