"""Writes files atomically, so that no half-written file is left, and checks archives for damage."""

import os
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file with `whole_file`."""
    encoded = content.encode() if isinstance(content, str) else content
    with whole_file(path) as file:
        file.write(encoded)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside the path for writing; at the end it is synced and renamed to the path.

    A reader sees either the old file or the whole new one, also if several processes write it or one is killed.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    # a rename is on the disk only when its directory is synced; Windows can't open directories
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_parts(directory: Path) -> None:
    """Remove the half-written files that a kill has left in a run directory. No other process may write into it."""
    for folder in (directory, directory / "checkpoints", directory / "figures"):
        for path in folder.glob("*.????????.part"):
            path.unlink(missing_ok=True)


def append(descriptor: int, content: bytes) -> None:
    """Write all of the content: os.write can write only a part, as on a disk that is nearly full.

    Raises:
        OSError: the rest can't be written.
    """
    while content:
        content = content[os.write(descriptor, content) :]


def verify_archive(path: Path) -> None:
    """Compare each member of a zip archive with its checksum. Every checkpoint is such an archive.

    Raises:
        ValueError: the file is no archive, or has changed since it was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises many types for damaged files
        raise ValueError(f"it is no archive: {error}") from error
    if damaged is not None:
        raise ValueError(f"{damaged} has changed since it was written")
