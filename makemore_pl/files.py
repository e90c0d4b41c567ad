"""Files that are whole or not there."""

import uuid
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the whole new one, whoever else writes it too."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
