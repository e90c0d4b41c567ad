"""Writes a page on a run, a sweep, or two runs: python scripts/report.py DIRECTORY [RUN] [--output FILE]"""

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from makemore_pl.arguments import read, read_path
from makemore_pl.command_line import literal, typed
from makemore_pl.config import Config, resolve
from makemore_pl.config.stored_config import load_config
from makemore_pl.errors import USERS_MISTAKES, one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(
        description="One self-contained HTML page, and its figures as PNG and SVG; of a sweep, or of any "
        "directory with runs below it, also summary.csv and summary.md. Of two runs a page of what tells them apart."
    )
    parser.add_argument("directory", type=read_path, help="of a run, of a sweep, or of several runs")
    parser.add_argument("other", type=read_path, nargs="?", help="a second run directory, to be shown beside the first")
    parser.add_argument(
        "--output",
        type=read_path,
        help="only the page, and figures/ beside it (default: DIRECTORY/report.html; of two runs, in "
        "the folder that holds both)",
    )
    arguments = read(parser)
    from makemore_pl.report.page import write_pair, write_report
    from makemore_pl.report.sweep_directory import is_sweep

    directory, other, defaults = arguments.directory, arguments.other, asdict(Config(run_dir=""))
    if other is not None:
        common = Path(os.path.commonpath([directory.resolve().parent, other.resolve().parent]))
        beside = common / f"{directory.resolve().name}_beside_{other.resolve().name}.html"
        print(write_pair(directory, other, arguments.output or beside))
        return
    if arguments.output is None and is_sweep(directory):
        from makemore_pl.report.summary import write_summary

        write_summary(directory, defaults)
        print(f"All runs below {directory}, compared where steps and words are the same:")
        print(*(directory / name for name in ("report.html", "summary.md", "summary.csv", "figures")), sep="\n")
        print("and a report.html in the directory of each run that had none of its last state.")
        return
    print(write_report(directory, arguments.output, defaults, starting_point(directory)))


def starting_point(directory: Path) -> dict[str, Any] | None:
    """The config of the run's experiment without other overrides; None if unknown, or if Hydra kept the command."""
    if not (directory / "config.yaml").is_file() or (directory / ".hydra" / "overrides.yaml").is_file():
        return None
    from hydra import compose, initialize_config_dir
    from omegaconf import DictConfig

    try:
        config = load_config(directory)
        experiment = [] if config.experiment == "default" else [f"+experiment={typed(config.experiment)}"]
        with initialize_config_dir(str(Path(__file__).parents[1].resolve() / "conf"), version_base="1.3"):
            raw = compose("train", overrides=experiment)
        raw.run_dir = literal(config.run_dir)
        assert isinstance(raw, DictConfig)
        return asdict(resolve(raw))
    except USERS_MISTAKES:  # the run is of another version, or its experiment is gone
        return None


if __name__ == "__main__":
    with one_sentence():
        main()
