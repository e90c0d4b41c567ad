"""Reads a run directory. The run may be unfinished, and it may have no diagnostics."""

import base64
import json
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from makemore_pl.figures.series import Floats
from makemore_pl.stored_files import read_archive, read_json, read_yaml

log = logging.getLogger(__name__)

DIAGNOSTICS_FORMAT = 1
KINDS = ("values", "histograms", "rasters", "texts")
Bits = NDArray[np.bool_]


@dataclass(slots=True)
class Diagnostics:
    """The content of diagnostics.jsonl."""

    values: dict[str, dict[int, float]] = field(default_factory=dict)
    """tag -> step -> number, NaN for a number that was not finite."""
    histograms: dict[int, dict[str, tuple[Floats, Floats]]] = field(default_factory=dict)
    """step -> tag -> edges and counts."""
    rasters: dict[int, dict[str, Bits]] = field(default_factory=dict)
    """step -> tag -> (examples, units)."""
    texts: dict[int, dict[str, list[str]]] = field(default_factory=dict)
    """step -> tag -> lines."""

    def quantity(self, quantity: str) -> tuple[NDArray[np.int64], dict[str, Floats]]:
        """Steps, and layer or parameter -> numbers at these steps, NaN at steps that have none."""
        prefix = f"{quantity}/"
        series = {tag.removeprefix(prefix): by for tag, by in self.values.items() if tag.startswith(prefix)}
        if quantity in self.values:
            series[quantity] = self.values[quantity]
        steps = sorted(set().union(*series.values()))
        return np.array(steps, dtype=np.int64), {
            name: np.array([by.get(step, np.nan) for step in steps]) for name, by in series.items()
        }

    def tag(self, tag: str) -> tuple[NDArray[np.int64], Floats]:
        """Steps and numbers of one tag."""
        by = self.values.get(tag, {})
        steps = sorted(by)
        return np.array(steps, dtype=np.int64), np.array([by[step] for step in steps], dtype=np.float64)

    @property
    def last_step(self) -> int | None:
        return max((step for by in self.values.values() for step in by), default=None)


@dataclass(slots=True)
class Run:
    """One run. `metrics` is empty while it is not finished."""

    directory: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    diagnostics: Diagnostics
    overrides: list[str] | None
    """What was typed after `scripts/train.py`; None if Hydra did not keep it."""
    findings: list[dict[str, Any]]
    """What the doctor found, from findings.json."""
    diagnosis: dict[str, Any] = field(default_factory=dict)
    """All of findings.json; empty if the run had no doctor."""
    job: str = ""
    """A label that differs from those of the runs it was read with: the path of its folder below their common one."""

    @property
    def name(self) -> str:
        return str(self.config.get("experiment", self.directory.name))

    @property
    def finding(self) -> str:
        """The id of the doctor's first finding above info that no other one explains; empty if there is none."""
        return next(iter(self.roots), "")

    @property
    def roots(self) -> list[str]:
        """The ids of all such findings, without repetitions."""
        found = (
            finding for finding in self.findings if finding.get("severity") != "info" and not finding.get("because_of")
        )
        return list(dict.fromkeys(str(each.get("id", "")) for each in found))

    def get(self, key: str) -> Any:
        """The value of a dotted config key; None if the config lacks it."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node


def is_run(directory: Path) -> bool:
    return (directory / "config.yaml").is_file()


def read_run(directory: Path, kinds: Collection[str] = KINDS) -> Run:
    """Read a run directory.

    Args:
        kinds: which kinds of lines of diagnostics.jsonl to read.

    Raises:
        ValueError: it is no run directory, or a file in it can't be read.
    """
    if not is_run(directory):
        raise ValueError(f"{directory} is not a run directory: it has no config.yaml.")
    diagnosis = read_json(directory / "findings.json")
    return Run(
        directory,
        read_yaml(directory / "config.yaml", dict),
        read_json(directory / "metrics.json"),
        read_diagnostics(directory / "diagnostics.jsonl", kinds),
        read_overrides(directory),
        [finding for finding in diagnosis.get("findings", []) if isinstance(finding, dict)],
        diagnosis,
    )


def read_overrides(directory: Path) -> list[str] | None:
    """The overrides that Hydra kept, without those that only name a directory or file; None if it kept none."""
    path = directory / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return None
    elsewhere = ("hydra.", "run_dir=", "ckpt_path=")
    return [str(override) for override in read_yaml(path, list) if not str(override).lstrip("+~").startswith(elsewhere)]


def working_directory(directory: Path) -> Path | None:
    """The directory in which the command of a run, or of its sweep, was typed; None if Hydra did not keep it."""
    for path in (directory / ".hydra" / "hydra.yaml", directory.parent / "multirun.yaml"):
        if path.is_file():
            runtime = read_yaml(path, dict).get("hydra", {}).get("runtime", {})
            return Path(runtime["cwd"]) if isinstance(runtime, dict) and "cwd" in runtime else None
    return None


def read_diagnostics(path: Path, kinds: Collection[str] = KINDS) -> Diagnostics:
    """Read diagnostics.jsonl; empty if there is none. A last line that a kill has cut short is left out.

    Raises:
        ValueError: a line can't be read; the message tells which.
    """
    read = Diagnostics()
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} can't be read: {error}.") from None
    for number, line in enumerate(lines, start=1):
        if not any(f'"{kind}"' in line for kind in kinds):
            continue
        try:
            record = json.loads(line)
            if record["version"] != DIAGNOSTICS_FORMAT:
                raise ValueError(
                    f"version {record['version']!r} of the format, this program reads {DIAGNOSTICS_FORMAT}"
                )
            _merge(read, record)
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                log.warning("%s: the last line is broken and left out.", path)
                break
            raise ValueError(f"{path}, line {number}, can't be read: {error}.") from None
    return read


def _merge(read: Diagnostics, record: dict[str, Any]) -> None:
    step = int(record["step"])
    for tag, value in record.get("values", {}).items():
        read.values.setdefault(tag, {})[step] = np.nan if value is None else float(value)
    for tag, histogram in record.get("histograms", {}).items():
        edges, counts = np.array(histogram["edges"], dtype=np.float64), np.array(histogram["counts"], dtype=np.float64)
        read.histograms.setdefault(step, {})[tag] = edges, counts
    for tag, raster in record.get("rasters", {}).items():
        rows, columns = raster["shape"]
        bits = np.unpackbits(np.frombuffer(base64.b64decode(raster["bits"]), dtype=np.uint8), count=rows * columns)
        read.rasters.setdefault(step, {})[tag] = bits.reshape(rows, columns).astype(bool)
    for tag, lines in record.get("texts", {}).items():
        read.texts.setdefault(step, {})[tag] = [str(line) for line in lines]


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config -> dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def recorded(runs: Iterable[Run]) -> list[list[str]]:
    """Commit and versions that the runs have recorded, as rows of name and value; all values if runs differ."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        versions = run.metrics.get("versions")
        facts = {"commit": run.metrics.get("commit")} | (versions if isinstance(versions, dict) else {})
        for name, value in facts.items():
            if value is not None:
                found.setdefault(name, {})[str(value)] = None
    return [[name, ", ".join(values)] for name, values in found.items()]


def read_embedding(directory: Path) -> tuple[str, Floats]:
    """Characters, the end mark first, and their learned embeddings (V, n_embd), from the last checkpoint.

    Raises:
        ValueError: there is no checkpoint, or it is not one of this project.
    """
    path = directory / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise ValueError("There is no checkpoints/last.ckpt.")
    checkpoint = read_archive(path)
    try:
        characters = "." + checkpoint["hyper_parameters"]["vocabulary"]
        embedding = checkpoint["state_dict"]["model.embedding.weight"].double().numpy()
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"checkpoints/last.ckpt can't be read ({type(error).__name__}).") from error
    if len(characters) != len(embedding):
        raise ValueError(f"checkpoints/last.ckpt has {len(embedding)} embeddings for {len(characters)} characters.")
    return characters, embedding
