"""Measures one contender on one network in its own process: python -m benchmarks.measurement CASE RESULT

CASE is JSON: contender, network (the fields of Network), warmup and steps, words (a path), run_dir, overrides (for this
project). RESULT is the JSON file to write.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import FLOOR, OURS
from benchmarks.lecture import train_deep, train_shallow
from benchmarks.modules import bare_loop, matrix_products
from benchmarks.networks import Network
from benchmarks.splits import Forward, Splits, read_splits, split_loss
from benchmarks.stopwatch import Stopwatch


def measure_ours(network: Network, case: dict[str, Any]) -> dict[str, Any]:
    from benchmarks import project

    overrides = [*network.overrides, *case["overrides"], f"run_dir={case['run_dir']}"]
    stride = project.watch_every(overrides)
    # full strides end with steps that are multiples of watch_every
    warmup = -(-case["warmup"] // stride) * stride + 1
    steps = warmup + -(-case["steps"] // stride) * stride
    stopwatch = Stopwatch(warmup, steps)
    inside = project.fit(overrides, steps, warmup, stopwatch)
    return stopwatch.measured() | inside


def train(contender: str, network: Network, splits: Splits, steps: int, stopwatch: Stopwatch, run_dir: Path) -> Forward:
    if contender == "1b":
        return bare_loop(network, splits, steps, stopwatch)
    if contender == "2":
        from benchmarks.plain_lightning import fit

        return fit(network, splits, steps, stopwatch, run_dir)
    loop = train_deep if network.batchnorm == "pre_output" else train_shallow
    return loop(network, splits, steps, stopwatch, bookkeeping=contender == "1a+")


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """What the stopwatch measured, and the final losses of the loops."""
    network, contender = Network(**case["network"]), case["contender"]
    if contender in OURS:
        return measure_ours(network, case)
    steps = case["warmup"] + case["steps"]
    stopwatch = Stopwatch(case["warmup"], steps)
    if contender == FLOOR:
        matrix_products(network, steps, stopwatch)
        return stopwatch.measured()
    splits = read_splits(Path(case["words"]))
    forward = train(contender, network, splits, steps, stopwatch, Path(case["run_dir"]))
    measured = stopwatch.measured()
    return measured | {f"{split}/loss": split_loss(forward, *splits[split]) for split in ("train", "val")}


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(sys.argv[2]).write_text(json.dumps(measure(json.loads(sys.argv[1]))))
