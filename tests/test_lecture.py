"""docs/lecture.md is made by a command."""

import json
import re
from pathlib import Path

from conftest import ROOT, python

SCRIPT = ROOT / "scripts" / "lecture.py"


def test_page_shows_the_commands_their_pictures_and_numbers(tmp_path: Path) -> None:
    arguments = ["--output", tmp_path / "runs", "--page", tmp_path / "lecture.md", "--steps", "20", "--commands", "2"]
    done = python(SCRIPT, *arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    page = (tmp_path / "lecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^    (.*)$", page, re.MULTILINE) == [
        f".venv/bin/python scripts/train.py +experiment={name} trainer.max_steps=20 "
        f"hydra.run.dir={tmp_path / 'runs' / name}"
        for name in ("original", "fix_softmax")
    ]
    for name in ("original", "fix_softmax"):
        metrics = json.loads((tmp_path / "runs" / name / "metrics.json").read_text())
        assert f"{metrics['initial_loss']:.4f}" in page
        assert f"{metrics['val/loss']:.4f}" in page
    pictures = re.findall(r"!\[.+\]\((.+)\)", page)
    assert len(pictures) == 3
    assert all((tmp_path / picture).stat().st_size < 60_000 for picture in pictures)
    assert "Not seen in this run.**" not in page

    metrics_path = tmp_path / "runs" / "original" / "metrics.json"
    metrics_path.write_text(json.dumps(json.loads(metrics_path.read_text()) | {"initial_loss": 3.0}))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    done = python(SCRIPT, *arguments, cwd=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == made, "nothing runs twice"
    assert done.code == 1
    assert "a first loss far above ln V: 3.0000 beside" in done.err
    page = (tmp_path / "lecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^- a first loss far above.*", page, re.MULTILINE)[0].endswith("**Not seen in this run.**")


def test_page_in_the_repository_is_whole() -> None:
    page = (ROOT / "docs" / "lecture.md").read_text(encoding="utf-8")
    assert "Not seen" not in page.partition("## 1.")[2]
    template = (ROOT / "docs" / "lecture.md.j2").read_text(encoding="utf-8").splitlines()
    prose = [line for line in template if not set(line) & set("{}~")]
    assert [line for line in prose if line not in page.splitlines()] == [], (
        "make lecture, after a change of the template"
    )
    assert all((ROOT / "docs" / picture).is_file() for picture in re.findall(r"!\[.+\]\((.+)\)", page))
