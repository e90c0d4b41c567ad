"""Reads diagnostics.jsonl, which the run may still be writing. Lightning is not needed for it."""

import base64
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from makemore_pl.stored_form import ANY, NUMBER, TEXT, WHOLE, Optional, refuse_misfit

log = logging.getLogger(__name__)

DIAGNOSTICS_FORMAT = 1
LINE = {
    "version": WHOLE,
    "step": WHOLE,
    "values": Optional({ANY: Optional(NUMBER)}),
    "histograms": Optional({ANY: {"edges": [NUMBER], "counts": [NUMBER]}}),
    "rasters": Optional({ANY: {"shape": [WHOLE], "bits": TEXT}}),
    "texts": Optional({ANY: [TEXT]}),
}
"""The form of a line."""
KINDS = ("values", "histograms", "rasters", "texts")
Floats = NDArray[np.float64]
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


def read_diagnostics(path: Path, kinds: Collection[str] = KINDS) -> Diagnostics:
    """Read diagnostics.jsonl; empty if there is none. A last line that a kill has cut short is left out.

    Args:
        kinds: only lines with one of these kinds, or tags, are read.

    Raises:
        ValueError: a line can't be read; the message tells which, and what is wrong with it.
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
            refuse_misfit(record, LINE)
            if record["version"] != DIAGNOSTICS_FORMAT:
                raise ValueError(f"version {record['version']} of the format, this program reads {DIAGNOSTICS_FORMAT}")
            _merge(read, record)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                log.warning("%s: the last line is broken and left out.", path)
                break
            raise ValueError(f"{path}, line {number}, can't be read: {error}.") from None
    return read


def _merge(read: Diagnostics, record: dict[str, Any]) -> None:
    step = record["step"]
    for tag, value in (record.get("values") or {}).items():
        read.values.setdefault(tag, {})[step] = np.nan if value is None else float(value)
    for tag, histogram in (record.get("histograms") or {}).items():
        edges, counts = (np.array(histogram[part], dtype=np.float64) for part in ("edges", "counts"))
        if len(edges) != len(counts) + 1 or not len(counts) or not (np.diff(edges) > 0).all():
            raise ValueError(f"histograms.{tag} must have rising edges, one more than counts")
        read.histograms.setdefault(step, {})[tag] = edges, counts
    for tag, raster in (record.get("rasters") or {}).items():
        packed = np.frombuffer(base64.b64decode(raster["bits"], validate=True), dtype=np.uint8)
        shape = raster["shape"]
        if len(shape) != 2 or min(shape) < 1 or len(packed) != -(-shape[0] * shape[1] // 8):
            raise ValueError(f"rasters.{tag} must have two sizes and that many bits")
        bits = np.unpackbits(packed, count=shape[0] * shape[1])
        read.rasters.setdefault(step, {})[tag] = bits.reshape(shape).astype(bool)
    for tag, lines in (record.get("texts") or {}).items():
        read.texts.setdefault(step, {})[tag] = lines
