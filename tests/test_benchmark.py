import json
import subprocess
import sys
from pathlib import Path

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
