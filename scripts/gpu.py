"""Runs the tests for GPUs and then measures on a GPU, in bounded time: python scripts/gpu.py [--minutes 20]

Results are written at once to checks.txt, figures.json and figures.md, so nothing is lost if the script is ended early.
makemore_pl need not be installed (docs/gpu.md). The exit code is that of the tests.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARE = 0.5
"""The tests take at most this share of the time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="total time (default: 20)")
    parser.add_argument("--only", choices=("checks", "figures"), help="run only one of the two parts")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"), help="directory (default: outputs/gpu)")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets background processes ignore it
    ends, code = time.monotonic() + 60 * arguments.minutes, 0
    if arguments.only != "figures":
        share = 1 if arguments.only else SHARE
        code = check(output / "checks.txt", 60 * arguments.minutes * share)
    if arguments.only != "checks":
        minutes = (ends - time.monotonic()) / 60 - 1  # leave a minute for the measurement that is running then
        command = ["scripts/benchmark.py", "--gpu", "--minutes", f"{minutes:.2f}", "--output", output / "figures.json"]
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment(), check=True)
    sys.exit(code)


def check(path: Path, seconds: float) -> int:
    """Run the tests and write their output to `path`; returns their exit code."""
    command = ["-m", "pytest", "-m", "gpu", "-vv", "-rs", "-W", "default", "--durations=10", "tests/test_gpu.py"]
    with path.open("w") as stream:
        tests = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment(), stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            code = tests.wait(seconds)
        except subprocess.TimeoutExpired:
            tests.send_signal(signal.SIGINT)  # then pytest reports the failures so far
            try:
                code = tests.wait(30)
            except subprocess.TimeoutExpired:
                tests.kill()
                code = tests.wait()
    print(*path.read_text().splitlines()[-20:], f"The whole of it: {path}", sep="\n", flush=True)
    return code


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    main()
