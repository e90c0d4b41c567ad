"""A small share of make soak and make fuzz, and what their verdicts rest on."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Compose, python

from makemore_pl.train import run

sys.path.insert(0, str(ROOT))

from reliability.comparison import differences, unequal


def test_runs_killed_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    done = python("-m", "reliability.soak", "--kills=3", "--sweeps=0", f"--scratch={tmp_path}", cwd=ROOT)
    records = [json.loads(line) for line in (tmp_path / "seed1" / "results.jsonl").read_text().splitlines()]
    assert sum(record["kills"] for record in records) >= 3, done.err
    lost = [each for record in records for each in record["lost"]]
    assert lost == []


def test_generated_cases_end_in_use_or_in_a_sentence() -> None:
    done = python("-m", "reliability.fuzz", "--cases=150", cwd=ROOT)
    assert "150 cases, 0 faults" in done.out, done.out + done.err


def test_a_difference_is_found(small: Compose, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    doctor = "callbacks={doctor: {_target_: makemore_pl.diagnostics.Doctor}}"
    run(small("logger=tensorboard", doctor, run_dir=ours), announce=False)
    shutil.copytree(ours, theirs)
    assert differences(ours, theirs) == []
    checkpoint = torch.load(theirs / "checkpoints" / "last.ckpt", weights_only=True)
    weight = checkpoint["state_dict"]["model.embedding.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    torch.save(checkpoint, theirs / "checkpoints" / "last.ckpt")
    (theirs / "metrics.json").write_text((ours / "metrics.json").read_text().replace('"steps": 20', '"steps": 21'))
    judged = json.loads((ours / "findings.json").read_text())
    (theirs / "findings.json").write_text(json.dumps(judged | {"checked": judged["checked"][1:]}))
    lines = (ours / "diagnostics.jsonl").read_text().splitlines()
    (theirs / "diagnostics.jsonl").write_text("\n".join([*lines, lines[-1]]))
    next(theirs.glob("events*")).unlink()
    found = differences(ours, theirs)
    assert found[:2] == ["last.ckpt: .state_dict.model.embedding.weight differs", "metrics.json: .steps is 20 and 21"]
    count = len(judged["checked"])
    assert found[2] == f"findings.json: .checked has {count} and {count - 1} entries"
    assert found[3] == f"diagnostics.jsonl: {len(lines)} and {len(lines) + 1} lines, not the same"
    assert found[4].startswith("TensorBoard: ")


@pytest.mark.parametrize(
    ("theirs", "found"),
    [
        ({"a": [1.0, "/there/x.ckpt"]}, []),
        ({"a": [1.0, "/there/y.ckpt"]}, [".a[1] is '/here/x.ckpt' and '/there/y.ckpt'"]),
        ({"a": [1.0]}, [".a has 2 and 1 entries"]),
        ({"a": [float("nan"), "/here/x.ckpt"]}, [".a[0] is 1.0 and nan"]),
        ({"b": 1}, [".a is in one only", ".b is in one only"]),
    ],
)
def test_unequal(theirs: dict[str, object], found: list[str]) -> None:
    assert list(unequal({"a": [1.0, "/here/x.ckpt"]}, theirs)) == found
