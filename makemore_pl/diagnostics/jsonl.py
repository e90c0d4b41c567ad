"""A Lightning logger that writes what was measured as JSON lines, for machines to read."""

import base64
import json
import logging
import math
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_only

from makemore_pl.diagnostics import host
from makemore_pl.diagnostics.host import Logger
from makemore_pl.diagnostics_file import DIAGNOSTICS_FORMAT
from makemore_pl.files import append, write_atomically

log = logging.getLogger(__name__)


class JSONLinesLogger(Logger):
    """Appends to `<save_dir>/diagnostics.jsonl`, one JSON object a line, and writes each line at once.

    A line is `{"version": 1, "step": 500, "values": {tag: number or null}}`; null stands for a number that is not
    finite. Several lines can have the same step. Instead of `values` a line can have `histograms` (edges and counts),
    `rasters` (shape and base64 of packed bits, row by row), `images` (paths, relative to the file) or `texts` (lists of
    strings).

    No step is in the file twice: when a process writes its first line, lines of earlier processes from that step on go.
    """

    def __init__(self, save_dir: str) -> None:
        host.join(JSONLinesLogger, "loggers")
        super().__init__()
        self.path = Path(save_dir) / "diagnostics.jsonl"
        self.tags: set[str] = set()
        """The tags of all values and images so far."""
        self._file: int | None = None
        """A file descriptor that stays open: opening the file for each line would double the time of logging."""
        self._resumed = False
        self._step = 0

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> int:
        return DIAGNOSTICS_FORMAT

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing, because config.yaml has the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.tags |= metrics.keys()
        numbers = {tag: float(value) for tag, value in metrics.items()}
        self._write(step, "values", {tag: value if math.isfinite(value) else None for tag, value in numbers.items()})

    @rank_zero_only
    def log_histograms(self, histograms: Mapping[str, tuple[list[float], list[int]]], step: int) -> None:
        """Log edges (n + 1) and counts (n) by tag. Edges keep seven digits, which is what a float32 has."""
        rounded = {
            tag: {"edges": [float(f"{edge:.7g}") for edge in edges], "counts": counts}
            for tag, (edges, counts) in histograms.items()
        }
        self._write(step, "histograms", rounded)

    @rank_zero_only
    def log_rasters(self, rasters: Mapping[str, "np.ndarray[Any, np.dtype[np.bool_]]"], step: int) -> None:
        """Boolean arrays by tag."""
        packed = {
            tag: {"shape": list(raster.shape), "bits": base64.b64encode(np.packbits(raster).tobytes()).decode()}
            for tag, raster in rasters.items()
        }
        self._write(step, "rasters", packed)

    @rank_zero_only
    def log_images(self, paths: Mapping[str, Path], step: int) -> None:
        self.tags |= paths.keys()
        self._write(step, "images", {tag: os.path.relpath(path, self.path.parent) for tag, path in paths.items()})

    @rank_zero_only
    def log_texts(self, texts: Mapping[str, list[str]], step: int) -> None:
        self._write(step, "texts", dict(texts))

    def written(self) -> int:
        """Bytes of the file so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    @rank_zero_only
    def resume_at(self, step: int, written: int | None = None) -> None:
        """Drop lines from `step` on, because these steps will be measured again, and a line that is cut short.

        Args:
            written: size of the file in bytes when the checkpoint was made. What follows was written because the run
                ended early, and is dropped too.
        """
        self.finalize("resumed")
        self._resumed = True
        if self.path.exists():
            content = self.path.read_bytes()
            lines = content[:written].decode(errors="replace").splitlines()
            if broken := [line for line in lines if line and _step(line) == math.inf]:
                log.warning("%s: %d broken line(s) of an earlier run dropped.", self.path, len(broken))
            kept = "".join(line + "\n" for line in lines if _step(line) < step)
            if kept.encode() != content:
                write_atomically(self.path, kept)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, step: int | None, kind: str, content: dict[str, Any]) -> None:
        self._step = self._step if step is None else int(step)
        if not content:
            return
        if not self._resumed:
            self.resume_at(self._step)
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        line = json.dumps({"version": DIAGNOSTICS_FORMAT, "step": self._step, kind: content}, allow_nan=False)
        append(self._file, (line + "\n").encode())


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf  # a kill has cut the line short
