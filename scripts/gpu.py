"""Runs the tests for GPUs and then measures on a GPU, in bounded time: python scripts/gpu.py [--minutes 20]

Results are written at once to checks.txt, figures.json and figures.md, so nothing is lost if the script is ended early.
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

sys.path.insert(0, str(Path(__file__).parents[1]))

from makemore_pl.arguments import read, read_path
from makemore_pl.errors import one_sentence

ROOT = Path(__file__).parents[1]
SHARE = 0.5
"""The tests take at most this share of the time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="total time (default: 20)")
    parser.add_argument("--only", choices=("checks", "figures"), help="run only one of the two parts")
    parser.add_argument(
        "--output", type=read_path, default=Path("outputs/gpu"), help="directory (default: outputs/gpu)"
    )
    arguments = read(parser)
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets background processes ignore it
    ends, code = time.monotonic() + 60 * arguments.minutes, 0
    if arguments.only != "figures":
        share = 1 if arguments.only else SHARE
        code = check(output, 60 * arguments.minutes * share)
    if arguments.only != "checks":
        minutes = (ends - time.monotonic()) / 60 - 1  # leave a minute for the measurement that is running then
        command = ["scripts/benchmark.py", "--gpu", "--minutes", f"{minutes:.2f}", "--output", output / "figures.json"]
        code = run(command, max(0, 60 * minutes) + 180) or code
    sys.exit(code)


def check(output: Path, seconds: float) -> int:
    """Run the tests and write a line for each, then the failures, to checks.txt."""
    ends = time.monotonic() + seconds
    code = tests(output / "checks.txt", seconds)
    if code == 1 and (left := ends - time.monotonic()) > 30:
        # after an error of CUDA nothing works any more in its process
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
    """The exit code of `python *command`. It is interrupted after this many seconds, and killed 30 s later."""
    python = [sys.executable, *map(str, command)]
    process = subprocess.Popen(
        python, cwd=ROOT, env=environment(), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # then pytest reports the failures so far
        with suppress(subprocess.TimeoutExpired):
            return process.wait(30)
        return -signal.SIGKILL
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        process.wait()


def environment() -> dict[str, str]:
    """The environment with absolute paths in PYTHONPATH, because tests start processes in other directories."""
    entries = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = os.pathsep.join([str(ROOT), *map(os.path.abspath, entries)])
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    with one_sentence():
        main()
