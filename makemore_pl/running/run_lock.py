"""The lock of a run directory, so that only one process at a time writes into it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "running.lock"
"""A process holds this lock while it writes into a run directory. The kernel releases it if the process dies."""
LOOK = 0.3
"""Seconds to try for: a sweep that looks whether a job runs holds its lock for a moment."""


@contextmanager
def alone_in(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a directory, which is made if it does not exist. A process can take its own lock again.

    Args:
        wait: whether to wait until another process has released the lock.

    Raises:
        ValueError: another process holds it, and `wait` is false.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK, is_singleton=True)
    try:
        lock.acquire(timeout=-1 if wait else LOOK)
    except Timeout:
        raise ValueError(f"Another process is training in {directory}: choose another hydra.run.dir.") from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):  # another command may have removed it
                (directory / LOCK).unlink()
        lock.release()
