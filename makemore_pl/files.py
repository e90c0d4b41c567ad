"""Files that are whole or not there, and archives that are as they were written."""

import os
import uuid
import zipfile
from pathlib import Path

PART = ".part"
"""Ends the name of a file that is being written; a kill leaves it behind."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, sync, then rename: a reader sees the old file or the whole new one, also after a kill."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PART}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    # the new name is on disk only when its directory is; Windows can't open one
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def append(descriptor: int, content: bytes) -> None:
    """Write all of it: os.write may write less, as on a disk that is nearly full.

    Raises:
        OSError: nothing more can be written.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def remove_parts(directory: Path) -> None:
    """Remove what a kill has left half written in a directory of a run, which no other process may be writing to."""
    for folder in (directory, directory / "checkpoints", directory / "figures"):
        for path in folder.glob(f"*{PART}"):
            path.unlink(missing_ok=True)


def verify_archive(path: Path) -> None:
    """Compare every member of a zip archive, which a checkpoint is, with its checksum.

    Raises:
        ValueError: no archive, or one that has changed since it was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # zipfile raises what it stumbles over
        raise ValueError(f"no archive: {type(error).__name__}") from error
    if damaged is not None:
        raise ValueError(f"its part {damaged} has changed since it was written")
