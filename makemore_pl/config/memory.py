"""Refuses a run that needs more memory than there is, before it takes any."""

import math
import os
from pathlib import Path

LIMITS = Path("/sys/fs/cgroup")
"""Where Linux has the limits of containers and of jobs of a cluster."""


def refuse_beyond_memory(needed: int, what: str, remedy: str) -> None:
    """Raises ValueError if `needed` bytes are more than this process can have; the message has both numbers."""
    available = min(_physical(), _limit())
    if needed > available:
        raise ValueError(
            f"{what} would take {needed / 2**30:,.1f} GiB of memory, and there are {available / 2**30:,.1f}: {remedy}."
        )


def _physical() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, others may lack a name
        return math.inf


def _limit() -> float:
    """The lowest limit of the control groups of this process, of either version; infinite without any."""
    try:
        groups = [line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except (OSError, IndexError):
        return math.inf
    places = {place for group in groups for place in (Path(group), *Path(group).parents)}
    files = [LIMITS / place.relative_to("/") / "memory.max" for place in places]
    files += [LIMITS / "memory" / place.relative_to("/") / "memory.limit_in_bytes" for place in places]
    limits = []
    for file in files:
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):  # there is none, or it says "max"
            continue
    return min(limits, default=math.inf)
