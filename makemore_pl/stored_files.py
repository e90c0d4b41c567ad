"""Reads YAML, JSON and checkpoints of a run directory; what can't be read is refused in one sentence."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import yaml

from makemore_pl.stored_form import ANY, FLAG, NUMBER, OBJECT, TEXT, WHOLE, Optional, refuse_misfit

FORMS = {
    "config.yaml": {
        "data": {"source": TEXT, "path": Optional(TEXT), **dict.fromkeys(("block_size", "batch_size"), WHOLE)},
        "model": {**dict.fromkeys(("n_layers", "n_hidden"), WHOLE), **dict.fromkeys(("activation", "batchnorm"), TEXT)},
        "optim": {**dict.fromkeys(("name", "schedule"), TEXT), **dict.fromkeys(("lr", "decay_at"), NUMBER)},
        "trainer": {"max_steps": WHOLE},
        "callbacks": Optional({ANY: OBJECT}),
        "logger": Optional({ANY: OBJECT}),
        "experiment": Optional(TEXT),
        "run_dir": Optional(TEXT),
        "seed": WHOLE,
    },
    "metrics.json": {
        "val/loss": NUMBER,
        **dict.fromkeys(("steps", "parameters"), Optional(WHOLE)),
        "versions": Optional(OBJECT),
        **dict.fromkeys(
            (
                "train/loss",
                "test/loss",
                "initial_loss",
                "uniform_loss",
                "val/perplexity",
                "seconds",
                "steps_per_second",
            ),
            Optional(NUMBER),
        ),
        **dict.fromkeys(("experiment", "stopped_by", "words_sha256", "commit"), Optional(TEXT)),
    },
    "findings.json": {
        "findings": [
            {
                **dict.fromkeys(("id", "severity"), TEXT),
                **dict.fromkeys(("message", "where", "source", "because_of"), Optional(TEXT)),
                **dict.fromkeys(("value", "bound"), Optional(NUMBER)),
                "step": Optional(WHOLE),
            }
        ],
        "abstentions": Optional([{"id": TEXT, "reason": TEXT, "applies": Optional(FLAG)}]),
        "checked": Optional([TEXT]),
        "prescriptions": Optional(
            [{"finding": TEXT, "overrides": [TEXT], "rationale": Optional(TEXT), "verified": Optional(TEXT)}]
        ),
    },
    "failure.json": dict.fromkeys(("reason", "command"), Optional(TEXT)),
}
"""File of a run directory -> the form of its content, as far as it is read."""


class _Tree(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses an alias, by which content could hold itself, or a few lines could be a billion."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


_Tree.add_implicit_resolver(  # 1e-3 is a number for OmegaConf, and a text for PyYAML
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


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


def read_config(run_dir: Path) -> dict[str, Any]:
    """The config of a run as nested dicts; interpolations are not resolved.

    Raises:
        ValueError: config.yaml is missing, or a setting that everyone needs is missing or of another type.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run_dir} is not a run directory: it has no config.yaml.")
    content: dict[str, Any] = read_yaml(path, dict)
    try:
        refuse_misfit(content, FORMS[path.name])
    except ValueError as error:
        raise ValueError(f"{path} can't be read: {error}.") from None
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, which must be an object, and of the form of a file of its name; empty without a file.

    Raises:
        ValueError: the content is something else; the message names the file and the key.
    """
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        refuse_misfit(content, FORMS.get(path.name, OBJECT))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}.") from None
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
