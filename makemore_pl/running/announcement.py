"""What a run says of itself in the terminal: at its start what is run and where, at its end losses and what to open."""

import logging
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.style import Style
from rich.table import Table
from rich.text import Text

from makemore_pl.command_line import command, near, tensorboard
from makemore_pl.config import Config
from makemore_pl.doctor.finding import Diagnosis
from makemore_pl.doctor.plain_words import verdict
from makemore_pl.files import write_atomically
from makemore_pl.running.output import show
from makemore_pl.running.pins import custom_scalars_url, url

log = logging.getLogger(__name__)
NEXT = {
    "original": "fix_softmax",
    "fix_softmax": "fix_saturation",
    "fix_saturation": "kaiming",
    "kaiming": "batchnorm",
    "batchnorm": "deep_linear",
    "deep_linear": "gain_low",
    "gain_low": "gain_high",
    "gain_high": "deep_batchnorm",
    "deep_batchnorm": "lr_low",
}
"""The experiment that the lecture goes on with."""
LABEL = 13
"""Columns of what stands before each line."""


def say_start(config: Config, parameters: int, words: int, first: int) -> None:
    """What is run, where it is written, and how to watch it live.

    Args:
        first: the step that training begins with; not 0 where a run is resumed.
    """
    run_dir = Path(config.run_dir)
    model, steps = config.model, f"{config.trainer.max_steps:,} steps"
    layers = f"{model.n_layers} hidden {'layer' if model.n_layers == 1 else 'layers'} of {model.n_hidden}"
    taken = f"resumed at step {first:,} of {steps}" if first else steps
    _line("training", f"{config.experiment}: {layers}, {parameters:,} parameters; {words:,} words; {taken}")
    _line("written to", _quoted(run_dir))
    if "tensorboard" in config.logger:
        _line("watch live", tensorboard(run_dir))


def say_end(config: Config, metrics: dict[str, Any], tags: Collection[str], diagnosis: Diagnosis | None = None) -> None:
    """The table of final losses, the doctor's verdict, and in a line each the page, TensorBoard, and what to try next.

    Writes the page, unless `report` is false, and `dashboard.url` into the run directory.

    Args:
        tags: what was logged, for the cards that TensorBoard pins.
        diagnosis: the doctor's; None where none has looked.
    """
    from makemore_pl.report.wording import number

    run_dir = Path(config.run_dir)
    stopped = f", stopped by {metrics['stopped_by']}" if metrics["stopped_by"] else ""
    table = Table(
        title=Text(f"{metrics['experiment']}: losses in nats, whole splits, eval mode"),
        caption=Text(f"{metrics['steps']:,} steps in {metrics['seconds']:.1f} s{stopped}"),
    )
    for column in ("train", "val", "test", "val perplexity", "initial", "uniform, ln V"):
        table.add_column(column, justify="right")
    keys = ("train/loss", "val/loss", "test/loss", "val/perplexity", "initial_loss", "uniform_loss")
    table.add_row(*(number(metrics[key]) for key in keys))
    show(table)
    if diagnosis:
        say_verdict(diagnosis)
    page = _write_page(run_dir) if config.report else None
    _line("page", _quoted(page) if page else command("report.py", near(run_dir)))
    if "tensorboard" in config.logger:
        address = url(tags, runs=(".", f"{run_dir.parent.name}/{run_dir.name}"))
        dashboard = run_dir / "dashboard.url"
        write_atomically(dashboard, f"{address}\n{custom_scalars_url()}\n")
        _line("TensorBoard", tensorboard(run_dir))
        link = Text(_quoted(dashboard), Style(link=address))
        _line("", "its main charts stand together at the address in ", link)
    say_next(config, diagnosis)


def say_verdict(diagnosis: Diagnosis) -> None:
    """The doctor's: a line where nothing is wrong, otherwise the findings in plain words."""
    if diagnosis.roots:
        for place, words in enumerate(verdict(diagnosis, whole=False)):
            _prose("" if place else "doctor", words)
    elif diagnosis.checked:
        _line("doctor", f"healthy: {len(diagnosis.checked)} checks found nothing wrong")


def say_next(config: Config, diagnosis: Diagnosis | None) -> None:
    """What to try next: this run with what the doctor prescribes, or the lecture's next experiment, or its names."""
    from makemore_pl.report.command import applied
    from makemore_pl.report.run_directory import read_overrides

    run_dir = Path(config.run_dir)
    changes = [override for each in diagnosis.prescriptions for override in each.overrides] if diagnosis else []
    overrides = read_overrides(run_dir) if changes else None
    if overrides is not None:
        _line("try next", command("train.py", *applied(overrides, changes)))
    elif following := NEXT.get(config.experiment):
        _line("try next", command("train.py", f"+experiment={following}"))
    elif (run_dir / "metrics.json").exists():
        _line("try next", command("sample.py", near(run_dir)))


def _write_page(run_dir: Path) -> Path | None:
    from makemore_pl.report.page import render, tell

    path = run_dir / "report.html"
    try:
        write_atomically(path, render(tell(run_dir, asdict(Config(run_dir="")))))
    except Exception as error:  # the run is done, whatever becomes of its page
        log.warning("The page could not be made (%s: %s).", type(error).__name__, error)
        return None
    return path


def _quoted(path: Path) -> str:
    return shlex.quote(near(path))


def _prose(label: str, words: str) -> None:
    """Wrapped at the width of a terminal, under its beginning."""
    width = shutil.get_terminal_size().columns - LABEL if sys.stdout.isatty() else 0
    indent = len(words) - len(words.lstrip())
    under = " " * (indent + (3 if re.match(r"\d\. ", words) else 0))
    lines = (
        textwrap.wrap(words, width, subsequent_indent=under, break_long_words=False, break_on_hyphens=False)
        if width > 2 * LABEL
        else [words]
    )
    for place, line in enumerate(lines):
        _line("" if place else label, line)


def _line(label: str, words: str, more: Text | None = None) -> None:
    # Text: no brackets of a path are markup; soft_wrap: a command is pasted in one piece
    show(Text(f"{label:<{LABEL}}") + Text(words) + (more or Text()))
