"""What a run prints: at its start what is run and where, at its end the losses and what to open next."""

import logging
import shlex
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
from makemore_pl.running.output import show, wrapped
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
"""Experiment -> the next one in the order of the lecture."""
CHARTS_ARE_PINNED = ": the main charts, pinned"
LABEL = 13
"""Width of the label before each line, in characters."""


def say_start(config: Config, parameters: int, words: int, first: int) -> None:
    """Print what is run, where it is written, and how to watch it live.

    Args:
        first: the step at which training begins; it is not 0 if a run is resumed.
    """
    run_dir = Path(config.run_dir)
    model, steps = config.model, f"{config.trainer.max_steps:,} steps"
    layers = f"{model.n_layers} hidden {'layer' if model.n_layers == 1 else 'layers'} of {model.n_hidden}"
    taken = f"resumed at step {first:,} of {steps}" if first else steps
    _prose("training", f"{config.experiment}: {layers}, {parameters:,} parameters; {words:,} words; {taken}")
    _line("written to", _quoted(run_dir))
    if "tensorboard" in config.logger:
        _line("watch live", tensorboard(run_dir))


def say_end(config: Config, metrics: dict[str, Any], tags: Collection[str], diagnosis: Diagnosis | None = None) -> None:
    """Print the final losses, the doctor's verdict, and a line each for the page, TensorBoard and what to try next.

    It also writes the page, unless `report` is false, and `dashboard.url` into the run directory.

    Args:
        tags: all tags that were logged; they decide which cards TensorBoard pins.
        diagnosis: the doctor's; None if the run had no doctor.
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
        write_atomically(run_dir / "dashboard.url", f"{address}\n{custom_scalars_url()}\n")
        _line("TensorBoard", tensorboard(run_dir))
        _line("", "and open ", Text.assemble(("the address in dashboard.url", Style(link=address)), CHARTS_ARE_PINNED))
    following = NEXT.get(config.experiment)
    if diagnosis and (overrides := _remedied(config, diagnosis)):
        script, rest = "train.py", overrides
    elif following:
        script, rest = "train.py", [f"+experiment={following}"]
    else:
        script, rest = "sample.py", [near(run_dir)]
    _line("try next", command(script, *rest))


def say_verdict(diagnosis: Diagnosis) -> None:
    """Print the doctor's verdict: one line if nothing is wrong, else the findings."""
    if diagnosis.roots or diagnosis.unseen:
        for place, words in enumerate(verdict(diagnosis, whole=False)):
            _prose("" if place else "doctor", words)
    elif diagnosis.checked:
        _line("doctor", f"healthy: {len(diagnosis.checked)} checks found nothing wrong")


def say_breakdown(config: Config, diagnosis: Diagnosis) -> None:
    """Print the verdict on a run that could not go on, and the command with what the doctor prescribes."""
    say_verdict(diagnosis)
    if overrides := _remedied(config, diagnosis):
        _line("try next", command("train.py", *overrides))


def _remedied(config: Config, diagnosis: Diagnosis) -> list[str]:
    """The typed overrides with all that is prescribed; empty if nothing is, or if they are not known."""
    from makemore_pl.report.command import applied
    from makemore_pl.report.run_directory import read_overrides

    changes = [override for each in diagnosis.prescriptions for override in each.overrides]
    typed = read_overrides(Path(config.run_dir))
    return applied(typed, changes) if changes and typed is not None else []


def _write_page(run_dir: Path) -> Path | None:
    from makemore_pl.report.page import page_of, render

    path = run_dir / "report.html"
    try:
        write_atomically(path, render(page_of(run_dir, asdict(Config(run_dir="")))))
    except Exception as error:  # the run is done, so it must not fail because of its page
        log.warning("The page could not be made (%s: %s).", type(error).__name__, error)
        return None
    return path


def _quoted(path: Path) -> str:
    return shlex.quote(near(path))


def _prose(label: str, words: str) -> None:
    for place, line in enumerate(wrapped(words, LABEL)):
        _line("" if place else label, line)


def _line(label: str, words: str, more: Text | None = None) -> None:
    # as Text, because rich would take brackets in a path for markup
    show(Text(f"{label:<{LABEL}}") + Text(words) + (more or Text()))
