"""What the default callbacks add to the whole command of 200,000 steps, in CPU time, with a warm cache.

CPU time of a process says it also where other work shares the machine. The commands run in pairs, one right after the
other, and the result is the median over the pairs.
"""

import statistics
from collections.abc import Callable
from typing import Any

GOAL = 0.05
"""The callbacks may add this share of the CPU time of the command without callbacks."""
HEADER = ["without, s of CPU time", "with the default callbacks", "added (lowest to highest)", "goal"]
Pair = tuple[float, float]
"""CPU seconds of a command without and with the callbacks."""


def measure(command: Callable[[str], dict[str, Any]], pairs: int, say: Callable[[str], None]) -> list[Pair]:
    """Run the pairs, in turns with the one or the other first.

    Args:
        command: runs a contender, "3" (without callbacks) or "4" (with them); returns its cpu_seconds.
    """
    command("4")  # compiles
    found = []
    for pair in range(pairs):
        order = ("3", "4") if pair % 2 else ("4", "3")
        taken = {contender: command(contender)["cpu_seconds"] for contender in order}
        found.append((taken["3"], taken["4"]))
        say(f"pair {pair + 1}/{pairs}: {taken['4']:.1f} s with, {taken['3']:.1f} s without")
    return found


def rows(pairs: list[Pair]) -> list[list[str]]:
    """Medians over the pairs, of what was added as a share too."""
    without, watched = (statistics.median(each) for each in zip(*pairs, strict=True))
    shares = [pair[1] / pair[0] - 1 for pair in pairs]
    added = f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
    return [[f"{without:.1f}", f"{watched:.1f}", added, f"≤ {GOAL:.0%}"]]
