"""On a machine with a GPU: its tests, then its figures, in bounded time: python scripts/gpu.py [--minutes 20]

Everything is written as it comes, to checks.txt, figures.json and figures.md: whoever is cut off keeps what there is.
Needs no installed makemore_pl (docs/gpu.md). Exits with the code of the tests.
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
"""Of the time, at most, for the tests."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="in all (default: 20)")
    parser.add_argument("--only", choices=("checks", "figures"), help="for machines that are lent for shorter")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"), help="directory (default: outputs/gpu)")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, also by what it starts
    ends, code = time.monotonic() + 60 * arguments.minutes, 0
    if arguments.only != "figures":
        share = 1 if arguments.only else SHARE
        code = check(output / "checks.txt", 60 * arguments.minutes * share)
    if arguments.only != "checks":
        minutes = (ends - time.monotonic()) / 60 - 1  # a measurement that has begun may take a minute more
        command = ["scripts/benchmark.py", "--gpu", "--minutes", f"{minutes:.2f}", "--output", output / "figures.json"]
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment(), check=True)
    sys.exit(code)


def check(path: Path, seconds: float) -> int:
    """Runs the tests; a line for each as it ends, then the failures, in `path`."""
    command = ["-m", "pytest", "-m", "gpu", "-vv", "-rs", "-W", "default", "--durations=10", "tests/test_gpu.py"]
    with path.open("w") as stream:
        tests = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment(), stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            code = tests.wait(seconds)
        except subprocess.TimeoutExpired:
            tests.send_signal(signal.SIGINT)  # pytest then tells what has failed so far
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
