"""Files that are whole or not there."""

from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old file or the whole new one."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
