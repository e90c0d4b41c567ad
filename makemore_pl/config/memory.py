"""Refuses a run that needs more memory than the machine has, before it takes any."""

import os


def refuse_beyond_memory(needed: int, what: str, remedy: str) -> None:
    """Raises ValueError if `needed` bytes are more than the machine's physical memory; the message has both numbers."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise ValueError(
            f"{what} would take {needed / 2**30:,.1f} GiB of memory, and this machine has {available / 2**30:,.1f}: "
            f"{remedy}."
        )
