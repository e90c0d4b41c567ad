"""What a sweep says at its end: the table, the best command, where to look, what failed."""

import io
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from makemore_pl.command_line import near, program, tensorboard
from makemore_pl.config import Config
from makemore_pl.files import write_atomically
from makemore_pl.sweep.job import in_a_line
from makemore_pl.sweep.tally import Sweep

if TYPE_CHECKING:
    from makemore_pl.report.summary import Ranking

MOST = 20
"""Rows of the table; the others are in summary.md."""


def conclude(sweep: Sweep) -> None:
    """Write the summary and print what is worth knowing.

    Raises:
        ValueError: with a table of the reasons, when jobs failed or there could be no summary.
    """
    failures = sweep.failures()
    say(sweep.progress())
    no_summary = _summarize(sweep) if sweep.finished() else ""
    if failures:
        rows = "\n".join(f"  {job}: {reason}" for job, reason in failures.items())
        failed = f"{len(failures)} of {len(sweep.jobs)} jobs failed; the others are not affected:\n{rows}"
        raise ValueError("\n".join(filter(None, (no_summary, failed))))
    if no_summary:
        raise ValueError(no_summary)


def _summarize(sweep: Sweep) -> str:
    """Write the summary and show it; returns why there is none, or nothing."""
    try:
        from makemore_pl.report.summary import write_summary  # draws, so only when there is something to draw

        rankings = write_summary(sweep.directory, asdict(Config(run_dir="")))
        won = next((ranking for ranking in rankings if ranking.best in sweep.jobs), None)
        pinned = pin_cards(sweep.directory / won.best, won) if won else ""
    except Exception as error:  # nothing may hide the failures
        return f"There is no summary. {in_a_line(error)}"
    seen, text = Console(), io.StringIO()
    console = Console(file=text, width=seen.width, force_terminal=seen.is_terminal)
    for ranking in rankings:
        console.print(_table(ranking))
    lines = [("best", command(sweep.jobs[won.best]))] if won else []
    lines += [("page", shlex.quote(near(sweep.directory / "report.html"))), ("TensorBoard", look(sweep) + pinned)]
    lines += [("summary", shlex.quote(near(sweep.directory / name))) for name in ("summary.csv", "summary.md")]
    _print(text.getvalue() + "".join(f"{label:<13}{line}\n" for label, line in lines))
    return ""


def pin_cards(best: Path, ranking: "Ranking") -> str:
    """Write dashboard.url beside the best job, a colour for each value of the first setting; empty where there is none.

    Returns:
        what says so.
    """
    from makemore_pl.report.run_directory import read_diagnostics
    from makemore_pl.running.pins import url

    tags = read_diagnostics(best / "diagnostics.jsonl", ("values",)).values
    if not tags:
        return ""
    swept = ranking.columns[0].rpartition(".")[2]
    address = url(tags, runs=(), colour_by="" if swept == "val loss" else f"{swept}=(.+?)(?:_[a-z.]+=|$)")
    write_atomically(best.parent / "dashboard.url", address + "\n")
    return "  (cards pinned by dashboard.url)"


def say(line: str, start: str = "", end: str = "\n") -> None:
    """Print on standard error. Nobody may be there to read it any more, and the jobs go on."""
    with suppress(OSError):
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)


def _print(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except OSError:  # the reader has left, as `head` does: nothing may be left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _table(ranking: "Ranking") -> Table:
    title = "losses in nats, mean ± std over seeds"
    table = Table(title=Text(f"{ranking.label}: {title}" if ranking.label else title))
    for column in ranking.columns:
        table.add_column(Text(column), overflow="fold")
    for row in ranking.cells[:MOST]:
        table.add_row(*map(Text, row))
    if len(ranking.cells) > MOST:
        table.caption = f"{len(ranking.cells) - MOST} more settings in summary.md"
    return table


def look(sweep: Sweep) -> str:
    """What shows the sweep in TensorBoard, while it runs and after."""
    return tensorboard(sweep.directory)


def command(overrides: Sequence[str]) -> str:
    """What runs one job of a sweep alone, to be pasted into a shell in this directory."""
    return shlex.join([*program("python"), near(Path(sys.argv[0])), *overrides])
