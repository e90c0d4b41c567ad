"""A sweep of 24 jobs, 4 gains x 3 placements x 2 seeds, on all cores, beside the same trainings without makemore_pl.

A gain changes nothing in the time of a step, so the others train each placement eight times with one gain.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.process import run

PLACEMENTS = ("none", "pre", "post")
JOBS = 24
SWEEP = ["-m", "+experiment=batchnorm", "model.gain=0.5,1,1.67,3", f"model.batchnorm={','.join(PLACEMENTS)}"]
GOALS = {"1b": 2.5, "2": 8.0}
"""Ours, with a warm cache, should reach this many times the throughput of each contender."""
FIXED_COST = 1.5
"""The goal, in seconds, for a job whose worker has already run a job of the same shape."""
HEADER = ["", "seconds", "jobs an hour", "× 1b", "× 2"]
Record = dict[str, Any]


def others(contender: str, words: Path, steps: int, taken: int, scratch: Path) -> Record:
    """24 trainings of `steps` steps. Only `taken` of the steps are run; the time of the others is extrapolated."""
    run_dir = scratch / contender
    run_dir.mkdir()
    case = {
        "contender": contender,
        "batchnorm": [placement for placement in PLACEMENTS for _ in range(JOBS // len(PLACEMENTS))],
        "steps": taken,
        "warmup": min(500, taken // 2),
        "words": str(words),
        "run_dir": str(run_dir),
    }
    result = run_dir / "result.json"
    process = run(["-m", "benchmarks.trainings", json.dumps(case), str(result)], scratch / "cache")
    missing = sum((steps - taken) * us / 1e6 for us in json.loads(result.read_text())) / (os.cpu_count() or 1)
    return {"contender": contender, **process, "seconds": process["seconds"] + missing, "measured": taken == steps}


def ours(kind: str, steps: int, scratch: Path) -> Record:
    """The sweep as typed, with summary and report."""
    directory = scratch / kind
    overrides = [*SWEEP, "seed=1,2", f"trainer.max_steps={steps}", f"hydra.sweep.dir={directory}"]
    process = run(["scripts/train.py", *overrides], scratch / "cache")
    losses = [json.loads(path.read_text())["val/loss"] for path in directory.glob("*/metrics.json")]
    assert len(losses) == JOBS
    return {"contender": kind, **process, "measured": True, "best_val_loss": min(losses)}


def fixed_cost(scratch: Path) -> float:
    """Seconds that a compiled job of 501 steps takes, from the times between the ends of jobs of one worker."""
    directory = scratch / "short"
    overrides = [
        "-m",
        "+experiment=batchnorm",
        f"seed=range(0,{JOBS})",
        "trainer.max_steps=501",
        "trainer.engine=compile",
    ]
    run(["scripts/train.py", *overrides, f"hydra.sweep.dir={directory}"], scratch / "cache")
    ends = sorted(path.stat().st_mtime for path in directory.glob("*/metrics.json"))
    cores = os.cpu_count() or 1
    return (ends[-1] - ends[cores - 1]) / (len(ends) - cores) * cores


def measure(words: Path, steps: int, scratch: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all contenders and say how far it is. Returns their records, ratios of throughput, and goals reached."""
    records: list[Record] = []
    for task in (
        lambda: ours("4 cold", steps, scratch),
        lambda: others("1b", words, steps, steps, scratch),
        lambda: ours("4 warm", steps, scratch),
        lambda: others("2", words, steps, min(steps, 5_000), scratch),
    ):
        records.append(task())
        say(f"{records[-1]['contender']}: {records[-1]['seconds']:.0f} s")
    seconds = {record["contender"]: record["seconds"] for record in records}
    ratios = {name: {against: seconds[against] / taken for against in GOALS} for name, taken in seconds.items()}
    cost = fixed_cost(scratch)
    reached = {against: ratios["4 warm"][against] >= goal for against, goal in GOALS.items()}
    return {
        "jobs": JOBS,
        "steps": steps,
        "records": records,
        "ratios": ratios,
        "fixed_cost_seconds": cost,
        "reached": reached | {"fixed cost": cost <= FIXED_COST},
    }


def rows(measured: dict[str, Any]) -> list[list[str]]:
    table = []
    for record in measured["records"]:
        name, seconds = record["contender"], record["seconds"]
        times = [f"{measured['ratios'][name][against]:.2f}" if against != name else "" for against in GOALS]
        mark = "" if record["measured"] else "~"
        table.append([name, f"{mark}{seconds:.0f}", f"{mark}{measured['jobs'] * 3600 / seconds:.0f}", *times])
    return table


def verdict(measured: dict[str, Any]) -> str:
    """One paragraph."""
    goals = [f"{bound:g} times {against}" for against, bound in GOALS.items()] + [f"a job in {FIXED_COST:g} s"]
    judged = [
        f"{goal}: {'reached' if reached else 'not reached'}"
        for goal, reached in zip(goals, measured["reached"].values(), strict=True)
    ]
    return (
        f"{measured['jobs']} jobs of {measured['steps']:,} steps on {os.cpu_count()} cores, summary and report "
        f"included; cold, warm: the cache of compiled code; ~ extrapolated from 5,000 steps. A further job "
        f"of 501 steps takes {measured['fixed_cost_seconds']:.2f} s, callbacks and evaluation included. Goals, warm: "
        f"{'; '.join(judged)}."
    )
