"""The lock of a run directory: one process at a time writes into it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "running.lock"
"""Held while a run writes into its directory, by whatever process of whatever command; the kernel lets go of it when
that dies."""


@contextmanager
def alone_in(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a directory, which is made where there is none. A process that holds it may take it again.

    Args:
        wait: for another process to let go of it.

    Raises:
        ValueError: another process holds it, and `wait` is false.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK, is_singleton=True)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise ValueError(f"Another process is training in {directory}: choose another hydra.run.dir.") from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):  # another command may have removed it
                (directory / LOCK).unlink()
        lock.release()
