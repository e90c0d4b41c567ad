"""Sweeps over many machines, for real: a two-node Ray cluster on this one, and submitit without SLURM."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Compose
from test_sweep import ENVIRONMENT, SMALL, alone, losses, started, times, wait_until

from makemore_pl.sweep.tally import is_locked

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore"),  # of Ray's own making
]
SCRIPT = ROOT / "scripts" / "train.py"
SEEDS = (1, 2, 3, 4)
HOW = "+callbacks.fault.how=env"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes, head and worker, of one CPU each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="make test-distributed installs Ray")
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])  # nodes hand theirs on to the jobs
    monkeypatch.setenv("FAULT", "seed=3:wait seed=4:wait")
    started = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    started.add_node(num_cpus=1)
    yield started
    started.shutdown()


@pytest.fixture
def expected(compose: Compose, words_file: Path, tmp_path: Path) -> dict[int, dict[str, float]]:
    return {seed: alone(compose, words_file, tmp_path / f"alone{seed}", HOW, f"seed={seed}") for seed in SEEDS}


def arguments(words_file: Path, seeds: tuple[int, ...], launcher: str) -> list[str]:
    listed = ",".join(map(str, seeds))
    return ["-m", f"data.path={words_file}", *SMALL, HOW, f"seed={listed}", "hydra.sweep.dir=sweep", launcher]


def sweep(cwd: Path, *arguments: str, **environment: str) -> str:
    """Run to the end; returns what it said on standard error."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("interrupted", [False, True])
def test_ray(
    cluster: Any, expected: dict[int, dict[str, float]], words_file: Path, tmp_path: Path, interrupted: bool
) -> None:
    """The same losses as alone; a killed node loses nothing finished, and Ray or the next command does the rest."""
    jobs = {seed: tmp_path / "sweep" / f"seed={seed}" for seed in SEEDS}

    def is_waiting(seed: int) -> bool:
        lock = jobs[seed] / "running.lock"
        return (jobs[seed] / "checkpoints" / "last.ckpt").exists() and lock.exists() and is_locked(lock)

    command = arguments(words_file, SEEDS, "hydra/launcher=ray_cluster")
    with started(SCRIPT, *command, cwd=tmp_path, RAY_ADDRESS=cluster.address) as process:
        wait_until(lambda: is_waiting(3) and is_waiting(4), process)  # each on a node of its own
        finished = {seed: times(jobs[seed]) for seed in (1, 2)}
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        wait_until(lambda: not (is_waiting(3) and is_waiting(4)), process)
        if interrupted:
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=60)
            while is_waiting(3) or is_waiting(4):
                time.sleep(0.1)  # Ray ends the jobs of a driver that is gone
        (tmp_path / "sweep" / "go").touch()
        _, err = process.communicate(timeout=300)
    assert process.returncode == (130 if interrupted else 0), err
    sweep(tmp_path, *command, RAY_ADDRESS=cluster.address)
    assert {seed: losses(jobs[seed]) for seed in SEEDS} == expected
    assert {seed: times(jobs[seed]) for seed in (1, 2)} == finished


def test_submitit(expected: dict[int, dict[str, float]], words_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="make test-distributed installs it")
    said = sweep(tmp_path, *arguments(words_file, (1, 2), "hydra/launcher=submitit_local"), **ENVIRONMENT)
    assert "2 of 2 jobs done" in said
    assert {seed: losses(tmp_path / "sweep" / f"seed={seed}") for seed in (1, 2)} == {1: expected[1], 2: expected[2]}
