"""A Lightning logger that writes what was measured as JSON lines, for machines to read."""

import base64
import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

VERSION = 1


class JSONLinesLogger(Logger):
    """Appends to `<save_dir>/diagnostics.jsonl`, one object a line.

    `{"version": 1, "step": 500, "values": {tag: number or null}}`, null for what is not finite; several lines may carry
    the same step. `histograms` holds edges and counts, `rasters` shape and base64 of packed bits, row by row, `texts`
    lists of strings.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "diagnostics.jsonl"
        self.tags: set[str] = set()
        """Of all values so far."""
        self._lines: list[str] = []

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> int:
        return VERSION

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.tags |= metrics.keys()
        self._write(step, "values", {tag: value if math.isfinite(value) else None for tag, value in metrics.items()})

    @rank_zero_only
    def log_histograms(self, histograms: dict[str, tuple[list[float], list[float]]], step: int) -> None:
        """Edges (n + 1) and counts (n) by tag."""
        self._write(step, "histograms", {tag: {"edges": e, "counts": c} for tag, (e, c) in histograms.items()})

    @rank_zero_only
    def log_rasters(self, rasters: dict[str, "np.ndarray[Any, np.dtype[np.bool_]]"], step: int) -> None:
        """Boolean arrays by tag."""
        packed = {
            tag: {"shape": list(raster.shape), "bits": base64.b64encode(np.packbits(raster).tobytes()).decode()}
            for tag, raster in rasters.items()
        }
        self._write(step, "rasters", packed)

    @rank_zero_only
    def log_texts(self, texts: dict[str, list[str]], step: int) -> None:
        self._write(step, "texts", texts)

    def resume_at(self, step: int) -> None:
        """Forget what an interrupted run wrote from `step` on: it is about to be measured again."""
        self.save()
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) < step]
            temporary = self.path.with_suffix(".part")
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            temporary.replace(self.path)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Whoever resumes from this checkpoint finds all lines before it."""
        self.save()

    @rank_zero_only
    def save(self) -> None:
        if self._lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(self._lines)
            self._lines.clear()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _write(self, step: int | None, kind: str, content: dict[str, Any]) -> None:
        self._lines.append(json.dumps({"version": VERSION, "step": step, kind: content}, allow_nan=False) + "\n")
        if len(self._lines) >= 64:
            self.save()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf  # half a line, from a kill
