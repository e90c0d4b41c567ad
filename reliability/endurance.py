"""Runs many jobs in one process, a long run, and the same run in many surroundings: make endurance

It prints tables of memory, open files and threads.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import hydra
import torch

from makemore_pl.arguments import read
from makemore_pl.config import Config, resolve
from makemore_pl.errors import one_sentence
from makemore_pl.train import run
from reliability.process import ROOT, SCRIPT

ROWS = 10
"""Each table has this many lines."""


def resources() -> tuple[float, int, int]:
    """MB in memory, open files, threads of this process; Linux."""
    status = Path("/proc/self/status").read_text().splitlines()
    of = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    return int(of["VmRSS"].split()[0]) / 1024, len(os.listdir("/proc/self/fd")), int(of["Threads"])


def show(label: str) -> None:
    memory, files, threads = resources()
    print(f"{label:>12} {memory:8.0f} MB {files:5} files {threads:5} threads", flush=True)


def compose(*overrides: str) -> Callable[..., Config]:
    def composed(*more: str) -> Config:
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return resolve(hydra.compose("train", overrides=[*overrides, *more]))

    return composed


def many_jobs(count: int, scratch: Path) -> None:
    """Run this many short runs one after another in this process, with the default callbacks and loggers."""
    words = scratch / "words.txt"
    listed = (ROOT / "makemore_pl" / "names" / "ssa_names_2018.txt").read_text(encoding="utf-8").split()
    words.write_text("\n".join(listed[:800]), encoding="utf-8")
    composed = compose(
        f"data.path={words}",
        "model.n_hidden=16",
        "trainer.max_steps=60",
        "trainer.engine=eager",
        "trainer.enable_progress_bar=false",
        "report=false",
        "trainer=cpu",
    )
    print(f"{count} runs of 60 steps in one process, after run")
    for place in range(count):
        directory = scratch / "job"
        run(composed(f"seed={place}", f"run_dir={directory}"), announce=False)
        shutil.rmtree(directory)
        if place == 0 or (place + 1) % max(count // ROWS, 1) == 0:
            show(f"{place + 1:,}")


def long_run(steps: int, scratch: Path) -> None:
    """Run one long run, while a thread prints the table at equal distances of steps."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    class Looking(Callback):
        watched_steps_suffice = True

        def __init__(self) -> None:
            self.next = 0

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
            if trainer.global_step >= self.next or trainer.global_step == steps:
                show(f"{trainer.global_step:,}")
                self.next += max(steps // ROWS, 1)

    print(f"one run of {steps:,} steps, at step")
    node = {"_target_": f"{__name__}.looking"}
    config = compose(f"trainer.max_steps={steps}", "trainer.enable_progress_bar=false", "report=false", "trainer=cpu")(
        f"run_dir={scratch / 'long'}"
    )
    config.callbacks["looking"] = node
    globals()["looking"] = Looking
    run(config, announce=False)


def same_everywhere(scratch: Path) -> bool:
    """Whether one seed gives the same losses in other processes, launchers, directories and locales."""
    setting = ["seed=5", "trainer.max_steps=300", "trainer.engine=eager", "trainer=cpu", "model.batchnorm=pre"]
    setting += ["model.dropout=0.1", "logger=jsonl", "callbacks=none", "report=false"]
    there = scratch / "elsewhere é"
    there.mkdir()
    ways = {
        "plain": (ROOT, [], {}),
        "again": (ROOT, [], {}),
        "another directory": (there, [], {}),
        "LC_ALL=tr_TR.UTF-8": (ROOT, [], {"LC_ALL": "tr_TR.UTF-8"}),
        "LC_ALL=C, no UTF-8": (ROOT, [], {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        "PYTHONHASHSEED=1": (ROOT, [], {"PYTHONHASHSEED": "1"}),
        "TZ=Asia/Kathmandu": (ROOT, [], {"TZ": "Asia/Kathmandu"}),
        "OMP_NUM_THREADS=4": (ROOT, [], {"OMP_NUM_THREADS": "4"}),
        "joblib": (ROOT, ["-m"], {}),
        "basic launcher": (ROOT, ["-m", "hydra/launcher=basic"], {}),
    }
    found = {}
    for place, (way, (cwd, options, environment)) in enumerate(ways.items()):
        directory = scratch / f"way{place}"
        where = f"hydra.{'sweep' if options else 'run'}.dir={directory}"
        command = [sys.executable, str(SCRIPT), *options, *setting, where]
        environment = {"PYTHONPATH": str(ROOT)} | environment
        subprocess.run(command, cwd=cwd, env=os.environ | environment, check=True, capture_output=True)
        metrics = json.loads(next(directory.rglob("metrics.json")).read_text())
        found[way] = [metrics[key].hex() for key in ("initial_loss", "train/loss", "val/loss", "test/loss")]
        print(f"{way:>20}  {'the same bits' if found[way] == found['plain'] else f'OTHER: {found[way]}'}", flush=True)
    return all(each == found["plain"] for each in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=5_000_000)
    parser.add_argument("--ways", action=argparse.BooleanOptionalAction, default=True, help="one seed elsewhere")
    arguments = read(parser)
    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp(prefix="makemore_pl_endurance_"))
    try:
        same = not arguments.ways or same_everywhere(scratch)
        if arguments.jobs:
            many_jobs(arguments.jobs, scratch)
        if arguments.steps:
            long_run(arguments.steps, scratch)
    finally:
        shutil.rmtree(scratch)
    sys.exit(not same)


if __name__ == "__main__":
    with one_sentence():
        main()
