"""Reads YAML, JSON and checkpoints of a run directory; what can't be read is refused in one sentence."""

import json
import zipfile
from pathlib import Path
from typing import Any

import yaml


class _Tree(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses an alias, by which content could hold itself, or a few lines could be a billion."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def read_yaml(path: Path, kind: type) -> Any:
    """The content of a YAML file, which must be of this kind, dict or list.

    Raises:
        ValueError: the content is something else.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Tree)
    except (yaml.YAMLError, ValueError, RecursionError):
        content = None
    if not isinstance(content, kind):
        raise ValueError(f"{path} can't be read: it is not YAML of the expected form.")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, which must be an object; empty if there is no file.

    Raises:
        ValueError: the content is something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} can't be read: it is not JSON of the expected form.")
    return content


def read_archive(path: Path) -> Any:
    """The content of a checkpoint, on the CPU, after its checksums are compared. Nothing in it is executed.

    Raises:
        ValueError: the file is no checkpoint, truncated or damaged.
    """
    import torch  # imported here because the rest needs no torch

    try:
        verify_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types for damaged files
        raise ValueError(f"{path} is not a checkpoint, or is truncated or damaged ({type(error).__name__}).") from error


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
