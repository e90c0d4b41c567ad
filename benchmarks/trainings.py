"""Runs the trainings of a sweep without makemore_pl on all cores: python -m benchmarks.trainings CASE RESULT

CASE is JSON: contender (1b or 2), batchnorm (a placement for each training), steps, warmup, words (a path), run_dir.
RESULT is the JSON file to write, with µs a step of each training. A process starts and reads the words only once.
"""

import json
import multiprocessing
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import train
from benchmarks.networks import Network
from benchmarks.splits import Splits, read_splits, split_loss
from benchmarks.stopwatch import Stopwatch

splits_of = cache(read_splits)


def training(case: dict[str, Any], i: int) -> float:
    torch.set_num_threads(1)
    torch.manual_seed(i)
    splits: Splits = splits_of(Path(case["words"]))
    network = Network("batchnorm", batchnorm=case["batchnorm"][i])
    stopwatch = Stopwatch(case["warmup"], case["steps"])
    forward = train(case["contender"], network, splits, case["steps"], stopwatch, Path(case["run_dir"]) / str(i))
    for split in splits:
        split_loss(forward, *splits[split])
    return stopwatch.measured()["us"]


def main() -> None:
    case = json.loads(sys.argv[1])
    jobs = [(case, i) for i in range(len(case["batchnorm"]))]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        Path(sys.argv[2]).write_text(json.dumps(pool.starmap(training, jobs, chunksize=1)))


if __name__ == "__main__":
    main()
