"""One size on GPU and CPU: python -m benchmarks.gpu_row RESULT BATCH_SIZE N_HIDDEN DEADLINE CONTENDER...

Adds its cells to the JSON file RESULT as they are measured, and begins none after DEADLINE, seconds since the epoch.
"""

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import gpu, project
from benchmarks.lecture import train_shallow
from benchmarks.networks import NETWORKS, Network
from benchmarks.plain_lightning import fit
from benchmarks.splits import Splits, read_splits
from benchmarks.stopwatch import Stopwatch

WORDS = project.CONF.parent / "makemore_pl" / "names" / "ssa_names_2018.txt"
ENOUGH = 1.0
"""Seconds that a measurement should take."""
TOO_LONG = 60.0
"""Seconds that it must not take, by the pace of the lecture's loop."""
SHORTEST = 12
"""Steps of the shortest stride, of which 11 are unwatched."""
LONGEST = 2_000


class Clock(Stopwatch):
    """Waits for the GPU before it looks."""

    def __call__(self, step: int) -> None:
        if step in self.ends and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        super().__call__(step)


Run = Callable[[int, Clock], object]
"""Takes so many steps and ticks."""


def microseconds(run: Run, warmup: int, steps: int) -> float:
    clock = Clock(warmup, warmup + steps)
    run(warmup + steps, clock)
    return clock.measured()["us"]


def lecture(network: Network, splits: Splits, device: str) -> float:
    there = {split: (x.to(device), y.to(device)) for split, (x, y) in splits.items()}
    run = partial(train_shallow, network, there)
    us = microseconds(run, 2, 3)
    # a second time: the first run of a process loads kernels
    return microseconds(run, 2, steps_for(us)) if us < ENOUGH * 1e6 else us


def plain_lightning(network: Network, splits: Splits, device: str, pace: float, scratch: Path) -> float:
    # its hooks, and its DataLoader, which takes examples one by one
    pace += 4_000 + 8 * network.batch_size
    run = partial(fit, network, splits, root=scratch, accelerator=device)
    return microseconds(lambda steps, clock: run(steps=steps, tick=clock), 5, steps_for(pace))


def ours(contender: str, network: Network, device: str, pace: float, scratch: Path) -> float:
    stride = max(SHORTEST, steps_for(pace))
    overrides = [*network.overrides, "callbacks=none", f"trainer={device}", f"trainer.watch_every={stride}"]
    overrides.append(f"trainer.engine={gpu.ENGINES[contender]}")
    run = partial(project.fit, [*overrides, f"run_dir={scratch}"])
    # the first whole stride is the one after step `stride`: it compiles
    warmup = 2 * stride + 1
    return microseconds(lambda steps, clock: run(steps=steps, warmup=warmup, tick=clock), warmup, stride)


def steps_for(us: float) -> int:
    return max(3, min(LONGEST, round(ENOUGH * 1e6 / us)))


def cell(contender: str, network: Network, splits: Splits, device: str, pace: float | None) -> dict[str, Any]:
    """us, or why there is none. `pace` is that of the lecture's loop in µs, which is measured first."""
    if contender != "1a" and pace is None:
        return {"why": "the lecture's loop failed"}
    if pace is not None and (expected := 3 * SHORTEST * pace / 1e6) > TOO_LONG:
        return {"why": f"would take some {expected:.0f} s"}
    with TemporaryDirectory() as scratch:
        try:
            if pace is None:
                return {"us": lecture(network, splits, "cuda" if device == "gpu" else "cpu")}
            if contender == "2":
                return {"us": plain_lightning(network, splits, device, pace, Path(scratch))}
            return {"us": ours(contender, network, device, pace, Path(scratch) / "run")}
        except Exception as error:  # whatever a compiler or a GPU stumbles over: the other cells are still to come
            return {"why": f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"}


def main() -> None:
    output, batch_size, n_hidden, deadline = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    contenders = sys.argv[5:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    network = replace(NETWORKS["batchnorm"], batch_size=batch_size, n_hidden=n_hidden)
    splits = read_splits(WORDS)
    content = gpu.read(output)
    if torch.cuda.is_available():
        content["gpu"] = torch.cuda.get_device_name()
    pace: dict[str, float] = {}
    for contender, device in gpu.COLUMNS:
        if contender not in contenders or (device == "gpu" and not content["gpu"]):
            continue
        if time.time() > deadline:
            return
        measured = cell(contender, network, splits, device, pace.get(device))
        if contender == "1a" and "us" in measured:
            pace[device] = measured["us"]
        size = {"batch_size": batch_size, "n_hidden": n_hidden}
        content["cells"].append({**size, "contender": contender, "device": device, **measured})
        gpu.write(output, content)


if __name__ == "__main__":
    main()
