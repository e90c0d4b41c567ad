"""What the default callbacks add to the whole command of 200,000 steps, with a warm cache.

Two runs of the same command differ by more than that. So the commands run in pairs, one right after the other, and the
result is the mean difference of the pairs with its standard error.
"""

import statistics
from collections.abc import Callable
from typing import Any

GOAL = 0.05
"""The callbacks may add this share of the time of the command without callbacks."""


def measure(command: Callable[[str], dict[str, Any]], pairs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of each command, and what the callbacks add.

    Args:
        command: runs a contender, "3" (without callbacks) or "4" (with them); returns its seconds and cpu_seconds.
    """
    command("4")  # compiles
    seconds: dict[str, list[float]] = {"3": [], "4": []}
    cpu_seconds: dict[str, list[float]] = {"3": [], "4": []}
    for pair in range(pairs):
        for contender in ("3", "4") if pair % 2 else ("4", "3"):
            taken = command(contender)
            seconds[contender].append(taken["seconds"])
            cpu_seconds[contender].append(taken["cpu_seconds"])
        say(f"pair {pair + 1}/{pairs}: {seconds['4'][-1]:.1f} s with, {seconds['3'][-1]:.1f} s without")
    return {
        "seconds": seconds,
        "added": added(seconds["4"], seconds["3"]),
        "added_cpu": added(cpu_seconds["4"], cpu_seconds["3"]),
        "goal": GOAL,
    }


def added(with_callbacks: list[float], without: list[float]) -> dict[str, float]:
    """Mean difference of two or more pairs, its standard error, and the mean as a share of `without`."""
    differences = [a - b for a, b in zip(with_callbacks, without, strict=True)]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return {"seconds": mean, "standard_error": error, "share": mean / statistics.mean(without)}
