"""Files that are whole or not there, and archives that are as they were written."""

import errno
import os
import sys
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file, as `whole_file` does."""
    encoded = content.encode() if isinstance(content, str) else content
    with whole_file(path) as file:
        file.write(encoded)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write: beside the path, then synced and renamed.

    A reader sees the old file or the whole new one, whoever else writes it too, and whenever a kill comes.

    Raises:
        OSError: naming the path, not the file beside it.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with temporary.open("wb") as file:
            _is_ours(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):  # what is wrong with the directory has been raised
            temporary.unlink()


def _is_ours(file: BinaryIO) -> bool:
    """Whether no other process has this file open to write it; then it is this one's until it is closed.

    Where there are no such locks, as on Windows, nobody can remove a file that is open.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _sync(directory: Path) -> None:
    # only then is the new name on the disk; Windows can't open a directory
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_parts(directory: Path) -> None:
    """Remove what a kill has left half written in a directory of a run or a sweep; not what is being written."""
    for folder in (directory, directory / "checkpoints", directory / "figures"):
        for path in folder.glob("*.????????.part"):
            with suppress(OSError):
                with path.open("r+b") as file:
                    abandoned = _is_ours(file)
                if abandoned:
                    path.unlink()


def append(descriptor: int, content: bytes) -> None:
    """Write all of it: os.write may write a part, as on a disk that is nearly full.

    Raises:
        OSError: no more can be written.
    """
    while content:
        content = content[os.write(descriptor, content) :]


def verify_archive(path: Path) -> None:
    """Compare each member of a zip archive, which every checkpoint is, with its checksum.

    Raises:
        ValueError: it is no archive, or has changed since it was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises what it stumbles over
        raise ValueError(f"it is no archive: {error}") from error
    if damaged is not None:
        raise ValueError(f"{damaged} has changed since it was written")
