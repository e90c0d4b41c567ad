"""Word lists: read, cleaned and checked, from the package, the lecture's repository or a file."""

import hashlib
import logging
import os
from importlib import resources
from pathlib import Path

from makemore_pl.config import DataConfig

log = logging.getLogger(__name__)

END = "."
"""Marks start and end of a word; index 0 of every vocabulary."""
LECTURE_URL = "https://raw.githubusercontent.com/karpathy/makemore/988aa59/names.txt"
LECTURE_SHA256 = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"
CACHE = Path(__file__).parents[1] / ".cache"


def load_words(config: DataConfig) -> list[str]:
    """The words of `data.path`, or of `data.source`, in the order of the file.

    Raises:
        ValueError: the file can't be used; the message has path, line and what to do.
    """
    return SOURCES[config.source](Path(os.path.expanduser(config.path)) if config.path else None)


def _embedded_names(path: Path | None) -> list[str]:
    if path:
        return read_words(path)
    with resources.as_file(resources.files("makemore_pl.names") / "ssa_names_2018.txt") as embedded:
        return read_words(embedded)


def _lecture(path: Path | None) -> list[str]:
    path = path or _fetch_lecture()
    words = read_words(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != LECTURE_SHA256:
        raise ValueError(
            f"{path} is not the lecture's names.txt (SHA-256 {LECTURE_SHA256}): "
            "leave out data=lecture to train on other words."
        )
    return words


SOURCES = {"names": _embedded_names, "lecture": _lecture}
"""data.source -> function from data.path, which may be None, to words. The names are also in SOURCE_NAMES of
config/choices.py."""


def read_words(path: Path) -> list[str]:
    """The words of a UTF-8 file with one word a line.

    A byte-order mark, CRLF, blank lines and spaces around words are removed, and one warning says so.

    Raises:
        ValueError: the file is missing, empty or not UTF-8, a word contains the end mark, or there are fewer than 10.
    """
    if not path.is_file():
        raise ValueError(f"There is no word file {path}: data.path must name a text file with one word a line.")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8. Save the file as UTF-8 text.") from None
    lines = text.removesuffix("\n").split("\n") if text else []
    stripped = [line.strip("\ufeff \t\r") for line in lines]
    for number, word in enumerate(stripped, start=1):
        if END in word:
            raise ValueError(
                f"{path}, line {number}: {word!r} contains {END!r}, which marks start and end of a word. Remove it."
            )
    words = [word for word in stripped if word]
    if len(words) < 10:
        raise ValueError(f"{path} holds too few words, {len(words)}: at least 10 are needed to split them 80/10/10.")
    cleaned = sum(line != word or not word for line, word in zip(lines, stripped, strict=True))
    if cleaned:
        log.warning("%s: lines cleaned: %d (byte-order mark, CRLF, blank lines, spaces around words).", path, cleaned)
    return words


def fingerprint(words: list[str]) -> str:
    """SHA-256 of the words in their order."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _fetch_lecture() -> Path:
    try:
        import pooch  # imported here because a run on a word file does not need it

        return Path(pooch.retrieve(LECTURE_URL, known_hash=f"sha256:{LECTURE_SHA256}", fname="names.txt", path=CACHE))
    except (ImportError, OSError, ValueError) as error:
        # the errors of requests are OSErrors; a wrong hash is a ValueError
        raise ValueError(
            f"The lecture's names.txt could not be fetched from {LECTURE_URL}: put it at {CACHE / 'names.txt'} "
            f"(SHA-256 {LECTURE_SHA256}) or name it with data.path=FILE; data=names needs no network."
        ) from error
