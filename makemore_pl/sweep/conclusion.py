"""What a sweep prints at its end: the table, the command of the best job, where to look, and what failed."""

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
from makemore_pl.running.announcement import CHARTS_ARE_PINNED
from makemore_pl.sweep.job import in_a_line
from makemore_pl.sweep.tally import Sweep

if TYPE_CHECKING:
    from makemore_pl.report.summary import Ranking

MOST_ROWS = 20
"""The printed table has at most this many rows. summary.md has all of them."""


def conclude(sweep: Sweep) -> None:
    """Write the summary and print the end of the sweep.

    Raises:
        ValueError: jobs failed, or the summary could not be written; the message has the reasons.
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
    """Write the summary and print it. Returns why that failed, or an empty text."""
    try:
        from makemore_pl.report.summary import write_summary  # imported here because it imports matplotlib

        rankings = write_summary(sweep.directory, asdict(Config(run_dir="")))
        won = next((ranking for ranking in rankings if ranking.best in sweep.jobs), None)
        pinned = won is not None and pin_cards(sweep.directory / won.best, won)
    except Exception as error:  # an error here must not hide the failures of jobs
        return f"There is no summary. {in_a_line(error)}"
    seen, text = Console(), io.StringIO()
    console = Console(file=text, width=seen.width, force_terminal=seen.is_terminal)
    for ranking in rankings:
        console.print(_table(ranking))
    lines = [("best", command(sweep.jobs[won.best]))] if won else []
    lines += [("page", shlex.quote(near(sweep.directory / "report.html"))), ("TensorBoard", look(sweep))]
    lines += [("", f"and open the address in dashboard.url{CHARTS_ARE_PINNED}")] if pinned else []
    lines += [("summary", shlex.quote(near(sweep.directory / name))) for name in ("summary.csv", "summary.md")]
    _print(text.getvalue() + "".join(f"{label:<13}{line}\n" for label, line in lines))
    return ""


def pin_cards(best: Path, ranking: "Ranking") -> bool:
    """Write dashboard.url beside the best job, with a colour for each value of the first setting.

    Returns:
        False, and writes no file, if the job logged nothing.
    """
    from makemore_pl.diagnostics_file import read_diagnostics
    from makemore_pl.running.pins import url

    tags = read_diagnostics(best / "diagnostics.jsonl", ("values",)).values
    if not tags:
        return False
    swept = ranking.columns[0].rpartition(".")[2]
    address = url(tags, runs=(), colour_by="" if swept == "val loss" else f"{swept}=(.+?)(?:_[a-z.]+=|$)")
    write_atomically(best.parent / "dashboard.url", address + "\n")
    return True


def say(line: str, start: str = "", end: str = "\n") -> None:
    """Print on standard error, or do nothing if that is closed, because the jobs must go on."""
    with suppress(OSError):
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)


def _print(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except OSError:  # the reader has ended, as `head` does: discard the rest, or Python would fail to flush it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _table(ranking: "Ranking") -> Table:
    title = "losses in nats, mean ± std over seeds"
    table = Table(title=Text(f"{ranking.label}: {title}" if ranking.label else title))
    for column in ranking.columns:
        table.add_column(Text(column), overflow="fold")
    for row in ranking.cells[:MOST_ROWS]:
        table.add_row(*map(Text, row))
    if len(ranking.cells) > MOST_ROWS:
        table.caption = f"{len(ranking.cells) - MOST_ROWS} more settings in summary.md"
    return table


def look(sweep: Sweep) -> str:
    """The command that shows the sweep in TensorBoard, while it runs and afterwards."""
    return tensorboard(sweep.directory)


def command(overrides: Sequence[str]) -> str:
    """The shell command that runs one job of a sweep by itself, from this working directory."""
    return shlex.join([*program("python"), near(Path(sys.argv[0])), *overrides])
