import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import foreign, gpu, watching

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


def test_what_watching_adds_is_a_median_over_rounds() -> None:
    bare, watched, paged = watching.COMMANDS.values()
    taken = {bare: iter([10, 20, 10]), watched: iter([11, 21, 12]), paged: iter([99, 12, 23, 13])}
    ran = []

    def command(overrides: tuple[str, ...]) -> dict[str, float]:
        ran.append(overrides)
        return {"cpu_seconds": next(taken[overrides])}

    rounds = watching.measure(command, 3, lambda _: None)
    assert ran == [paged, paged, watched, bare, bare, watched, paged, paged, watched, bare], "the first one compiles"
    assert [[*seconds.values()] for seconds in rounds] == [[12, 11, 10], [20, 21, 23], [13, 12, 10]]
    assert [row[1:] for row in watching.rows(rounds)] == [
        ["10.00", "", ""],
        ["12.00", "10.0% (5.0% to 20.0%)", "≤ 5%"],
        ["13.00", "20.0% (15.0% to 30.0%)", ""],
    ]


def cells(width: int, times: dict[int, tuple[float, float]]) -> list[gpu.Cell]:
    """Cells of our eager engine. `times`: batch size -> µs on the GPU and on the CPU."""
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
    ratios = [1.1, 1.05, 1.5]
    records = [{"network": "mlp", "contender": "plain", "round": turn, "ms": ms} for turn, ms in enumerate([2, 4, 2])]
    records += [
        {"network": "mlp", "contender": "stats", "round": turn, "ms": 3 * ratio, "ratio": ratio}
        for turn, ratio in enumerate(ratios)
    ]
    memory = [("plain", 700.0), ("stats", 750.0)]
    records += [{"contender": name, "peak_mb": peak, "tapped_mb": 40.0} for name, peak in memory]
    assert [row[2:] for row in foreign.rows(records)] == [["2.00", "1.000", ""], ["3.30", "1.100", "≤ 1.05"]]
    assert [row[1:] for row in foreign.memory_rows(records)] == [["700", "0.0", ""], ["750", "1.2", "≤ 2"]]


def test_foreign_trains_in_turns(tmp_path: Path) -> None:
    found = foreign.train_in_turns("cnn", ["plain", "stats"], 2, str(tmp_path))
    assert len(found["cpu_seconds"]) == 2
    assert found["tapped_mb"] == (64 * 8 * 12 * 12 + 64 * 16 * 6 * 6) * 4 / 2**20
    assert "zero_share/2" in (tmp_path / "1" / "diagnostics.jsonl").read_text()
    assert not (tmp_path / "0" / "diagnostics.jsonl").exists(), "it logs every 50 steps"
