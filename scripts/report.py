"""A page about a run or a sweep: python scripts/report.py DIRECTORY [--output FILE]"""

import argparse
from dataclasses import asdict
from pathlib import Path

from makemore_pl.config import Config
from makemore_pl.errors import one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description="One self-contained HTML page, and its figures as PNG and SVG.")
    parser.add_argument("directory", type=Path, help="run directory or sweep directory")
    parser.add_argument(
        "--output", type=Path, help="the page; figures/ goes beside it (default: DIRECTORY/report.html)"
    )
    arguments = parser.parse_args()
    from makemore_pl.report.page import write_report

    print(write_report(arguments.directory, arguments.output, asdict(Config(run_dir=""))))


if __name__ == "__main__":
    with one_sentence():
        main()
