"""Results as rows of cells, for the screen and for Markdown."""

from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.contenders import CONTENDERS, FLOOR
from benchmarks.networks import AXES, scaled
from benchmarks.results import CPU, GOALS, Results, Spread

AGAINST = ("1a", "1b", "2")
TITLES = {
    "batchnorm": "`batchnorm`: one hidden layer of 200, BatchNorm before tanh",
    "kaiming": "`kaiming`: one hidden layer of 200",
    "deep_batchnorm": "`deep_batchnorm`: five hidden layers of 100, BatchNorm before each tanh and on the logits",
}
HEADER = ["", "µs a step", *(f"× {contender}" for contender in AGAINST), "cold, s", "warm, s", "MB", "val"]
GOALS_HEADER = ["network", "", "compared with", "ratio", "in CPU time", "goal", ""]
LEGEND = "µs a step: steady state, median (lowest–highest) of fresh processes; × 1a: how many times faster than 1a."
SCALING_HEADER = ["", "1b, µs a step", "3, µs a step", "× 1b"]


def command_legend(steps: int) -> str:
    return (
        f"cold, warm: seconds of the whole command for {steps:,} steps with start-up, compiling and evaluation, with "
        "an empty and a full cache of compiled code, and how many times faster than 1a's; ~ is extrapolated from "
        "start-up and steady state, the others were run. MB: peak while training / of a whole command that compiles. "
        "val: loss after the whole command."
    )


def environment_sentence(environment: dict[str, Any], results: Results) -> str:
    shares = results.core_shares()
    return (
        "{date}, commit {commit}, torch {torch}, lightning {lightning}, Python {python}, {cpu}, {cores} cores, "
        "load {load:.1f} at the start, one thread, data=names."
    ).format(**environment) + (
        f" While measured, a process had {min(shares):.0%} to {max(shares):.0%} of a core, {median(shares):.0%} in the "
        "median: far below 100% the machine had other work to do, and only ratios of CPU time mean something."
    )


def rows(results: Results, network: str) -> list[list[str]]:
    """A row for each contender that was measured, and one for the floor."""
    table = []
    for contender in CONTENDERS:
        if not (steady := results.steady(network, contender)):
            continue
        ratios = [_times(results.ratio(network, contender, each)) if each != contender else "" for each in AGAINST]
        commands = [_command(results, network, contender, cache) for cache in ("cold", "warm")]
        memory = [results.spread(network, contender, kind, "memory_mb") for kind in ("steady", "cold")]
        losses = [results.spread(network, contender, kind, "val/loss") for kind in ("whole", "cold")]
        val = next((f"{loss.median:.3f}" for loss in losses if loss), "")
        table.append(
            [
                contender,
                _microseconds(steady),
                *ratios,
                *commands,
                " / ".join(f"{each.median:.0f}" for each in memory if each),
                val,
            ]
        )
    if floor := results.steady(network, FLOOR):
        table.append([FLOOR, _microseconds(floor), *[""] * (len(HEADER) - 2)])
    return table


def goal_rows(results: Results) -> list[list[str]]:
    """A row for each goal that can be judged."""
    table = []
    for network, contender, against in GOALS:
        ratio = results.ratio(network, contender, against)
        of_cpu = results.ratio(network, contender, against, CPU)
        if verdict := results.verdict(network, contender, against):
            compared = {"cold": "1a, whole command, cold", "warm": "1a, whole command, warm"}.get(against, against)
            reached = "reached" if verdict["reached"] else "not reached"
            table.append([network, contender, compared, _times(ratio), _times(of_cpu), verdict["goal"], reached])
    return table


def scaling_rows(results: Results) -> list[list[str]]:
    table = []
    for axis, values in AXES.items():
        for value in values:
            name, _ = scaled(axis, value)
            theirs, ours = results.steady(name, "1b"), results.steady(name, "3")
            if theirs and ours:
                times = _times(results.ratio(name, "3", "1b"))
                table.append([f"{axis}={value}", _microseconds(theirs), _microseconds(ours), times])
    return table


def markdown(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def screen(title: str, header: list[str], body: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, collapse_padding=True, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in body:
        table.add_row(*row, style="red" if row[-1] == "not reached" else None)
    return table


def _command(results: Results, network: str, contender: str, cache: str) -> str:
    seconds = results.command(network, contender, cache)
    if seconds is None:
        return ""
    text = f"{'' if seconds.measured else '~'}{seconds.median:.1f}"
    if seconds.measured and seconds.low != seconds.high:
        text += f" ({seconds.low:.1f}–{seconds.high:.1f})"
    ratio = results.ratio(network, contender, cache)
    return text if contender == "1a" or ratio is None else f"{text} ({ratio:.2f}×)"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _microseconds(spread: Spread) -> str:
    if spread.low == spread.high:
        return f"{spread.median:.0f}"
    return f"{spread.median:.0f} ({spread.low:.0f}–{spread.high:.0f})"
