"""Writes files atomically, so that no half-written file is left."""

import errno
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file with `whole_file`."""
    encoded = content.encode() if isinstance(content, str) else content
    with whole_file(path) as file:
        file.write(encoded)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside the path for writing; at the end it is synced and renamed to the path.

    A reader sees either the old file or the whole new one, also if several processes write it or one is killed.

    Raises:
        OSError: the file can't be written; the error names the path, not the temporary file.
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
        with suppress(OSError):  # an error of the directory has been raised already
            temporary.unlink()


def _is_ours(file: BinaryIO) -> bool:
    """Lock a file until it is closed; False if another process has locked it, because it is writing the file.

    Windows has no such locks, but there open files can't be removed.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _sync(directory: Path) -> None:
    # a rename is on the disk only when its directory is synced; Windows can't open directories
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_parts(directory: Path) -> None:
    """Remove half-written files that kills have left in a run or sweep directory, but none that is being written."""
    for folder in (directory, directory / ".hydra", directory / "checkpoints", directory / "figures"):
        for path in folder.glob("*.????????.part"):
            with suppress(OSError):
                with path.open("r+b") as file:
                    abandoned = _is_ours(file)
                if abandoned:
                    path.unlink()


def append(descriptor: int, content: bytes) -> None:
    """Write all of the content at the end of a file: os.write can write only a part, as on a disk that is nearly full.

    Raises:
        OSError: not all of it can be written. Then the file is as it was, so that a later line is no part of this one.
    """
    size = os.fstat(descriptor).st_size
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    except OSError:
        with suppress(OSError):  # a pipe can't be cut
            os.ftruncate(descriptor, size)
        raise
