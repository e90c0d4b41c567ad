import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import foreign, gpu
from benchmarks.watching import added

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


def test_quick_measures_a_case_end_to_end(tmp_path):
    output = tmp_path / "benchmark.json"
    arguments = ["--quick", "--contenders", "3e", "--commands", "0", "--output", str(output)]
    subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, capture_output=True)

    content = json.loads(output.read_text(encoding="utf-8"))
    (entry,) = content["summary"]
    assert (entry["network"], entry["contender"]) == ("batchnorm", "3e")
    assert entry["us"]["median"] > 0
    assert content["commit"]
    assert "| 3e |" in output.with_suffix(".md").read_text(encoding="utf-8")


def test_what_watching_adds_is_a_mean_over_pairs() -> None:
    assert added([12.0, 13.0], [10.0, 10.0]) == {"seconds": 2.5, "standard_error": 0.5, "share": 0.25}


def cells(width: int, times: dict[int, tuple[float, float]]) -> list[gpu.Cell]:
    """Of our eager engine: µs on the GPU and on the CPU by batch size."""
    return [
        {"batch_size": batch_size, "n_hidden": width, "contender": "3e", "device": device, "us": us}
        for batch_size, both in times.items()
        for device, us in zip(("gpu", "cpu"), both, strict=True)
    ]


def test_where_the_gpu_overtakes_the_cpu() -> None:
    measured = cells(200, {32: (400, 100), 512: (400, 1_600), 8_192: (400, 25_000)})
    # four times slower at 32 and four times faster at 512: halfway between their logarithms, at 128
    assert gpu.parameters(200) == 270 + 6_000 + 400 + 5_400 + 27
    assert gpu.crossing(measured, 200) == pytest.approx(128 * 12_097)
    assert gpu.crossing(measured, 1_000) is None
    assert gpu.crossing(cells(200, {32: (1, 2), 512: (1, 3)}), 200) is None
    # the better of our engines counts, a failed one does not
    compiled = {"batch_size": 32, "n_hidden": 200, "contender": "3", "device": "gpu"}
    assert gpu.advantage([*measured, compiled | {"us": 25.0}], 32, 200) == 4
    assert gpu.advantage([*measured, compiled | {"why": "RuntimeError: no compiler"}], 32, 200) == 0.25


def test_table_of_the_gpu() -> None:
    measured = cells(200, {512: (400, 1_600), 32: (400, 100)})
    measured[0] = {**measured[0], "why": "OutOfMemoryError"}
    del measured[0]["us"]
    assert gpu.table(measured) == [
        ["32", "200", "387,104", "", "", "400", "100", "", "", "", "", "", "0.25"],
        ["512", "200", "6,193,664", "", "", "–", "1,600", "", "", "", "", "", ""],
    ]


def test_foreign_ratios_are_medians_of_rounds() -> None:
    records = [
        {"network": "mlp", "contender": contender, "round": turn, "steps": 1000, "seconds": seconds, "memory_mb": 400.0}
        for turn, both in enumerate([(2.0, 2.2), (4.0, 4.2), (2.0, 3.0)])
        for contender, seconds in zip(("plain", "stats"), both, strict=True)
    ]
    assert [row[2:] for row in foreign.rows(records)] == [
        ["2.00", "1.000", "400"],
        ["3.00", "1.100 (goal 1.05)", "400"],
    ]
