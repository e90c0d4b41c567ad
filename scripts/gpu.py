"""On a machine with a GPU: its tests, then its figures, in bounded time: python scripts/gpu.py [--minutes 20]

Everything is written as it comes, to checks.txt, figures.json and figures.md: whoever is cut off keeps what there is.
Needs no installed makemore_pl (docs/gpu.md). Exits with the code of the tests, or else of the figures.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

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
        code = check(output, 60 * arguments.minutes * share)
    if arguments.only != "checks":
        minutes = (ends - time.monotonic()) / 60 - 1  # a measurement that has begun may take a minute more
        command = ["scripts/benchmark.py", "--gpu", "--minutes", f"{minutes:.2f}", "--output", output / "figures.json"]
        code = run(command, max(0, 60 * minutes) + 180) or code
    sys.exit(code)


def check(output: Path, seconds: float) -> int:
    """Runs the tests; a line for each as it ends, then the failures, in checks.txt."""
    ends = time.monotonic() + seconds
    code = tests(output / "checks.txt", seconds)
    if code == 1 and (left := ends - time.monotonic()) > 30:
        # an error of CUDA's spoils all that comes after it in its process
        print("The tests that failed, once more:", flush=True)
        tests(output / "checks_again.txt", left, "--last-failed")
    return code


def tests(path: Path, seconds: float, *options: str) -> int:
    command = ["-m", "pytest", "-m", "gpu", "-vv", "-rs", "-W", "default", "--durations=10", "tests/test_gpu.py"]
    with path.open("w") as stream:
        code = run([*command, *options], seconds, stream)
    print(*path.read_text().splitlines()[-20:], f"The whole of it: {path}", sep="\n", flush=True)
    return code


def run(command: list[str | Path], seconds: float, stream: IO[str] | None = None) -> int:
    """The code of `python *command`; after so many seconds it is interrupted, and half a minute later killed."""
    python = [sys.executable, *map(str, command)]
    process = subprocess.Popen(
        python, cwd=ROOT, env=environment(), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then tells what has failed so far
        with suppress(subprocess.TimeoutExpired):
            return process.wait(30)
        return -signal.SIGKILL
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started
        process.wait()


def environment() -> dict[str, str]:
    """Ours, with a PYTHONPATH that holds in every directory: the tests start processes in others."""
    entries = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = os.pathsep.join([str(ROOT), *map(os.path.abspath, entries)])
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    main()
