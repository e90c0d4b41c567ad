"""What the default callbacks, and then the page, add to the whole command of 200,000 steps, with a warm cache.

CPU time of a process says it also where other work shares the machine. The three commands run one right after the
other, and the result is the median over the rounds.
"""

import statistics
from collections.abc import Callable
from typing import Any

GOAL = 0.05
"""The callbacks may add this share of the CPU time of the command without callbacks."""
HEADER = ["command", "s of CPU time", "added to the first (lowest to highest)", "goal"]
COMMANDS = {
    "no callbacks, no page": ("callbacks=none", "report=false"),
    "default callbacks, no page": ("report=false",),
    "default callbacks and the page": (),
}
BARE, WATCHED, _ = COMMANDS
Round = dict[str, float]
"""CPU seconds of each command."""


def measure(
    command: Callable[[tuple[str, ...]], dict[str, Any]], rounds: int, say: Callable[[str], None]
) -> list[Round]:
    """Run the rounds, every other one in the opposite order.

    Args:
        command: runs the command with these overrides; returns its cpu_seconds.
    """
    command(())  # compiles
    found = []
    for number in range(rounds):
        order = list(COMMANDS)[:: 1 if number % 2 else -1]
        taken = {name: command(COMMANDS[name])["cpu_seconds"] for name in order}
        found.append(taken)
        say(f"round {number + 1}/{rounds}: {', '.join(f'{taken[name]:.1f} s with {name}' for name in COMMANDS)}")
    return found


def rows(rounds: list[Round]) -> list[list[str]]:
    """Medians over the rounds, of what was added as a share too."""
    found = []
    for name in COMMANDS:
        shares = [taken[name] / taken[BARE] - 1 for taken in rounds]
        added = f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
        seconds = statistics.median(taken[name] for taken in rounds)
        found.append(
            [name, f"{seconds:.2f}", "" if name == BARE else added, f"≤ {GOAL:.0%}" if name == WATCHED else ""]
        )
    return found
