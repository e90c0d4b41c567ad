"""Keeps compiled packages in a directory that only this user can write to, each under its own hash.

A package is code that runs with the rights of the user who loads it. So the directory must belong to this user, and a
package must be what was compiled: its SHA-256 is part of its name and is compared before it is loaded.
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
"""Inductor's environment variable for its cache. Packages are kept there too if it is set."""
CHOSEN = os.environ.get(VARIABLE)
"""It is read at import, because inductor itself sets the variable to a directory below /tmp when it first compiles."""


def directory() -> Path:
    """The user's cache directory, or the one that TORCHINDUCTOR_CACHE_DIR names.

    If that is not safe, a warning is logged, and it is a temporary directory of this process.
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
    """Why other users could put files into a directory, as a phrase; None if they can't."""
    path = path.resolve()
    if path.stat().st_uid != os.geteuid():
        return f"{path} belongs to another user"
    for part in (path, *path.parents):
        status = part.stat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{part} belongs to another user"
        # in a directory with the sticky bit, like /tmp, others can't rename what belongs to this user
        sticky = part != path and status.st_mode & stat.S_ISVTX
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            return f"others can write to {part}"
    return None


@contextmanager
def inductor_inside(path: Path) -> Iterator[None]:
    """A context in which inductor keeps its intermediate files, which it runs too, in `path` or the user's choice."""
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
    """Hold the lock of this key, so that only one of several jobs compiles the package; yields the directory."""
    path = directory()
    with FileLock(path / f"{key}.lock"):
        yield path


def find(path: Path, key: str) -> Path | None:
    """The package with this key in the directory, or None. A damaged one is removed."""
    for package in path.glob(f"{key}.*.pt2"):
        if package.name == _name(key, package):
            return package
        log.warning("%s is damaged: the steps are compiled again.", package)
        package.unlink()
    return None


def keep(key: str, package: Path) -> Path:
    """Give a new package its final name; returns its path."""
    return package.replace(package.with_name(_name(key, package)))


def _name(key: str, package: Path) -> str:
    return f"{key}.{hashlib.sha256(package.read_bytes()).hexdigest()}.pt2"
