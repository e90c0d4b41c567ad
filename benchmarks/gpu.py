"""Measures GPU and CPU over batch size and width, and finds where the GPU becomes faster.

It does not import torch: each row of the table is measured in its own process, benchmarks/gpu_row.py.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.networks import BLOCK_SIZE, N_EMBD, VOCAB_SIZE
from benchmarks.process import ROOT
from benchmarks.tables import markdown

WIDTHS = (200, 1_000, 4_096)
ROWS = (
    *[(32, 200), (65_536, 4_096), (512, 200), (8_192, 200), (512, 1_000), (65_536, 200)],
    *[(512, 4_096), (8_192, 1_000), (32, 4_096), (32, 1_000), (8_192, 4_096), (65_536, 1_000)],
)
"""Batch sizes and widths. The most informative ones come first, because there may not be time for all."""
ENGINES = {"3e": "eager", "3r": "record", "3": "compile"}
"""The contenders that are this project, with `callbacks=none`."""
MEASURED = ("1a", "3e", "3r", "2", "3")
"""The lecture's loop comes first, because its pace decides how many steps the others take. Compiling takes longest."""
QUICK = MEASURED[:-1]
COLUMNS = [
    (contender, device) for contender in MEASURED for device in ("gpu", "cpu") if (contender, device) != ("3r", "cpu")
]
HEADER = [
    *["batch", "width", "parameters × batch"],
    *[f"{contender} {device.upper()}" for contender, device in COLUMNS],
    "ours, CPU / GPU",
]
LEGEND = (
    "µs a step of `batchnorm` at other sizes, one thread on the CPU. "
    + "; ".join(f"{contender}: {CONTENDERS[contender]}" for contender in ("1a", "2"))
    + "".join(f"; {contender}: ours, `callbacks=none trainer.engine={engine}`" for contender, engine in ENGINES.items())
    + ". Empty: there was no time for it; –: left out or failed, as the JSON file says."
)
LONGEST_ROW = 240
"""A contender that takes longer than these seconds is ended, so that the others have time."""
Cell = dict[str, Any]
"""Has batch_size, n_hidden, contender, device, and either us (µs a step) or why (the reason that there is no us)."""


def measure(
    output: Path,
    surroundings: dict[str, Any],
    rows: Iterable[tuple[int, int]],
    contenders: Iterable[str],
    minutes: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure, and write `output` and the Markdown beside it after every cell; returns the last content."""
    deadline = time.time() + 60 * minutes
    write(output, {**surroundings, "gpu": None, "cells": []})
    log = output.with_suffix(".log")
    for batch_size, n_hidden in rows:
        if time.time() > deadline:
            say(f"The {minutes:g} minutes are over.")
            break
        row = (output, batch_size, n_hidden, deadline, *contenders)
        command = [sys.executable, "-m", "benchmarks.gpu_row", *map(str, row)]
        with log.open("a") as stream:
            try:
                # the process begins no cell after the deadline, and may end its last one
                seconds = min(LONGEST_ROW, deadline + 120 - time.time())
                done = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=stream, timeout=seconds)
                code: int | str = done.returncode
            except subprocess.TimeoutExpired:
                code = "a timeout"
        content = read(output)
        measured = of_size(content["cells"], batch_size, n_hidden)
        say(f"batch {batch_size:,}, width {n_hidden:,}: {', '.join(map(described, measured.values()))}")
        if code:
            say(f"Its process ended with {code}: see {log}.")
        elif not content["gpu"]:
            break
    return read(output)


def described(cell: Cell) -> str:
    value = f"{cell['us']:,.0f} µs" if "us" in cell else cell["why"]
    return f"{cell['contender']} {cell['device'].upper()} {value}"


def read(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return content


def write(output: Path, content: dict[str, Any]) -> None:
    """Write the JSON file with the crossings of its cells, and the Markdown beside it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    content["crossings"] = {str(width): crossing(content["cells"], width) for width in WIDTHS}
    output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sentence = "{date}, commit {commit}, torch {torch}, lightning {lightning}, Python {python}, {cpu}, {gpu}.".format(
        **content | {"gpu": content["gpu"] or "no GPU"}
    )
    paragraphs = [sentence, markdown(HEADER, table(content["cells"])), LEGEND, crossing_sentence(content)]
    output.with_suffix(".md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def of_size(cells: list[Cell], batch_size: int, n_hidden: int) -> dict[tuple[str, str], Cell]:
    """(contender, device) -> cell, for one row."""
    size = batch_size, n_hidden
    return {
        (cell["contender"], cell["device"]): cell for cell in cells if (cell["batch_size"], cell["n_hidden"]) == size
    }


def table(cells: list[Cell]) -> list[list[str]]:
    """A row for each size that has a cell."""
    rows = []
    for batch_size, n_hidden in sorted({(cell["batch_size"], cell["n_hidden"]) for cell in cells}):
        found = of_size(cells, batch_size, n_hidden)
        cells_of_row = map(found.get, COLUMNS)
        times = ["" if cell is None else f"{cell['us']:,.0f}" if "us" in cell else "–" for cell in cells_of_row]
        ratio = advantage(cells, batch_size, n_hidden)
        work = f"{parameters(n_hidden) * batch_size:,}"
        rows.append([f"{batch_size:,}", f"{n_hidden:,}", work, *times, f"{ratio:.2f}" if ratio else ""])
    return rows


def advantage(cells: list[Cell], batch_size: int, n_hidden: int) -> float | None:
    """Time of our best engine on the CPU divided by that on the GPU; None if one is not known."""
    found = of_size(cells, batch_size, n_hidden)
    cpu, gpu = (
        min((found[ours, device]["us"] for ours in ENGINES if "us" in found.get((ours, device), {})), default=None)
        for device in ("cpu", "gpu")
    )
    return cpu / gpu if cpu and gpu else None


def parameters(n_hidden: int) -> int:
    """Number of parameters of the batchnorm network: embedding, hidden weights, BatchNorm, output weights and bias."""
    return VOCAB_SIZE * N_EMBD + BLOCK_SIZE * N_EMBD * n_hidden + 2 * n_hidden + n_hidden * VOCAB_SIZE + VOCAB_SIZE


def crossing(cells: list[Cell], n_hidden: int) -> float | None:
    """Parameters times batch size from which the GPU is faster at this width; None if that is not between two cells.

    Between two batch sizes, the logarithm of the ratio is interpolated linearly in the logarithm of the batch size.
    """
    sizes = sorted({cell["batch_size"] for cell in cells})
    known = [(size, ratio) for size in sizes if (ratio := advantage(cells, size, n_hidden))]
    for (below, slower), (above, faster) in pairwise(known):
        if slower < 1 <= faster:
            share = -math.log(slower) / math.log(faster / slower)
            return parameters(n_hidden) * below * (above / below) ** share
    return None


def crossing_sentence(content: dict[str, Any]) -> str:
    if not content["gpu"]:
        return "torch finds no GPU here: only the CPU was measured."
    found = [f"{value:,.0f} at width {width}" for width, value in content["crossings"].items() if value]
    if not found:
        return "No crossing lies between two of these rows."
    return f"The GPU is faster than the CPU from these parameters × batch on: {', '.join(found)}."
