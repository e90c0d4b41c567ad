"""A refusal before memory is taken that the machine does not have."""

import os


def refuse_beyond_memory(needed: int, what: str, remedy: str) -> None:
    """Raises ValueError with both numbers where `needed` bytes are more than the machine's physical memory."""
    there_is = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there_is:
        raise ValueError(
            f"{what} would take {needed / 2**30:,.1f} GiB of memory, and this machine has {there_is / 2**30:,.1f}: "
            f"{remedy}."
        )
