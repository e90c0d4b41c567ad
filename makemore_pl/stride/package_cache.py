"""Where compiled packages are kept: in a directory that only this user can write to, each under its own hash.

A package is code that runs as whoever loads it. So the directory must be ours, and what is in it must be what was
compiled: the SHA-256 of a package is part of its name and is compared before it is loaded.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

log = logging.getLogger(__name__)

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Inductor's own: whoever sets it moves inductor's cache and the packages."""
CHOSEN = os.environ.get(VARIABLE)
"""Read at once, because inductor sets the variable itself, to a directory below /tmp, when it first compiles."""


def directory() -> Path:
    """The user's cache directory, or the one that TORCHINDUCTOR_CACHE_DIR names, where it is safe.

    Else, with a warning, a directory that is removed at the end of the process.
    """
    path = Path(CHOSEN or _users_cache()) / "strides"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        danger = why_unsafe(path)
    except OSError as error:
        danger = f"{path} can't be used ({error.strerror})"
    return path if danger is None else _private(danger)


def _users_cache() -> str:
    from platformdirs import user_cache_dir  # runs that compile nothing work without it

    return user_cache_dir("makemore_pl")


@cache
def _private(danger: str) -> Path:
    log.warning("%s: what is compiled is kept for this process only.", danger)
    return Path(_temporary().name)


@cache
def _temporary() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="makemore_pl-")  # removed when the process ends


def why_unsafe(path: Path) -> str | None:
    """What lets somebody else put files into a directory: a phrase that names it, or None where nothing does."""
    path = path.resolve()
    if path.stat().st_uid != os.geteuid():
        return f"{path} belongs to another user"
    for part in (path, *path.parents):
        status = part.stat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{part} belongs to another user"
        # in a directory like /tmp, with the sticky bit, others can't rename what is ours
        sticky = part != path and status.st_mode & stat.S_ISVTX
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            return f"others can write to {part}"
    return None


@contextmanager
def inductor_inside(path: Path) -> Iterator[None]:
    """Keep inductor's intermediate files, which it also runs, in `path` meanwhile, unless the user chose a place."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = CHOSEN or str(path / "inductor")
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


@contextmanager
def locked(key: str) -> Iterator[Path]:
    """The directory, while no other process compiles the package of this key: a sweep's jobs want the same one."""
    path = directory()
    with FileLock(path / f"{key}.lock"):
        yield path


def find(path: Path, key: str) -> Path | None:
    """The package of this key in the directory, unharmed; one that is damaged is removed."""
    for package in path.glob(f"{key}.*.pt2"):
        if package.name == _name(key, package):
            return package
        log.warning("%s is damaged: the steps are compiled again.", package)
        package.unlink()
    return None


def keep(key: str, package: Path) -> Path:
    """Give a new package its final name."""
    return package.replace(package.with_name(_name(key, package)))


def _name(key: str, package: Path) -> str:
    return f"{key}.{hashlib.sha256(package.read_bytes()).hexdigest()}.pt2"
