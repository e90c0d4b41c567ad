"""Kills runs and sweeps at random moments, resumes them, and compares them with undisturbed ones: make soak

A seed gives the same cases and moments. Finished cases are kept in --scratch and not run again. A tally is printed.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from makemore_pl.arguments import read, read_path
from makemore_pl.errors import one_sentence
from reliability.comparison import differences
from reliability.process import ROOT, ended, finish, fork, of_session, start_sweep, warm

PLACEMENTS = ("none", "pre", "post", "output", "pre_output")
OPTIMIZERS = (
    ["optim=sgd"],
    ["optim=sgd", "optim.momentum=0.9", "optim.nesterov=true"],
    ["optim=adam"],
    ["optim=adamw", "optim.schedule=cosine", "optim.warmup_steps=17"],
    ["optim=rmsprop", "optim.momentum=0.5"],
)
MEMORY = Path("/dev/shm")
"""A second file system that is always mounted on Linux."""
GONE = 40.0
"""The processes of a stopped sweep must end within these seconds."""
Record = dict[str, Any]


def case(draw: random.Random, compiled: bool) -> list[str]:
    """The overrides of a short run with strides, validations and checkpoints at awkward steps."""
    overrides = [f"model.batchnorm={draw.choice(PLACEMENTS)}", *draw.choice(OPTIMIZERS)]
    overrides += [f"model.dropout={draw.choice((0, 0, 0.2))}", f"model.n_layers={draw.choice((1, 1, 3))}"]
    overrides += [f"trainer.engine={'compile' if compiled else 'eager'}", f"seed={draw.randrange(10**6)}"]
    # a compiled call takes its length from watch_every: a few lengths, so that the cache is shared
    overrides += [f"trainer.watch_every={draw.choice((200, 300) if compiled else (1, 7, 10, 37, 100, 1000))}"]
    overrides += [f"trainer.max_steps={draw.choice((700, 901) if compiled else (150, 211, 400))}"]
    overrides += [f"trainer.val_check_interval={draw.choice((101, 250) if compiled else (5, 13, 50, 99))}"]
    if draw.random() < 0.3:
        overrides += ["trainer.gradient_clip_val=0.1"]
    if draw.random() < 0.8:
        overrides += ["~callbacks.figures"]
    return overrides


def fixed(words: Path) -> list[str]:
    return ["trainer=cpu", "model.n_hidden=32", "data.batch_size=16", f"data.path={words}", "report=false"]


class Writes:
    """Notices that a checkpoint is being written, by watching the folders of checkpoints."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self.before = self._look()

    def _look(self) -> list[int]:
        return [folder.stat().st_mtime_ns if folder.exists() else 0 for folder in self.folders]

    def noticed(self) -> bool:
        now = self._look()
        changed, self.before = now != self.before, now
        return changed


def kill(pid: int, draw: random.Random, seconds: float, writes: Writes | None) -> bool:
    """Kill the process at a random moment, or during one of its first writes; False if it had ended before."""
    begun, left = time.monotonic(), draw.randrange(1, 12)
    while writes and time.monotonic() < begun + seconds:
        left -= writes.noticed()
        if left <= 0:
            time.sleep(draw.random() * 0.002)
            break
        if ended(pid, 0) is not None:
            return False
        time.sleep(0.0002)
    if ended(pid, begun + draw.random() * seconds if writes is None else 0) is not None:
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def resumed(run_dir: Path) -> list[str]:
    last = run_dir / "checkpoints" / "last.ckpt"
    return [f"ckpt_path='{last}'"] if last.exists() else []


def run_trial(name: str, scratch: Path, words: Path, compiled: bool) -> Record:
    """One run, killed up to four times, beside the same run undisturbed."""
    draw = random.Random(name)
    overrides = [*fixed(words), *case(draw, compiled)]
    in_memory = draw.random() < 0.3 and os.access(MEMORY, os.W_OK)
    place = (MEMORY / f"makemore_pl_soak_{os.getpid()}" if in_memory else scratch) / name
    temporary = scratch / f"{name}_tmp"  # another file system than the run's where that is in memory
    shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)
    for folder in (place, temporary):
        folder.mkdir(parents=True)
    environment = {"TMPDIR": str(temporary)}
    log = scratch / f"{name}.log"
    begun = time.monotonic()
    reference, victim = place / "reference", place / "victim"
    code = finish([*overrides, f"hydra.run.dir='{reference}'"], log, environment)
    seconds = time.monotonic() - begun
    record: Record = {"name": name, "overrides": overrides, "in_memory": in_memory, "kills": 0, "in_writes": 0}
    if code != 0:
        return record | {"lost": [f"the undisturbed run ends with {code}"]}
    log.unlink()
    command = [*overrides, f"hydra.run.dir='{victim}'"]
    for _ in range(4):
        in_write = draw.random() < 0.5
        pid = fork([*command, *resumed(victim)], log, environment)
        writes = Writes([victim, victim / "checkpoints", temporary]) if in_write else None
        if not kill(pid, draw, seconds, writes):
            break
        record["kills"] += 1
        record["in_writes"] += in_write
    if record["kills"]:  # also where the run had just ended, as one does to be sure
        code = finish([*command, *resumed(victim)], log, environment)
    if code != 0:
        said = log.read_text(errors="replace").strip().splitlines()
        return record | {"lost": [f"going on ends with {code}: {said[-1] if said else ''}"]}
    record["lost"] = differences(victim, reference)
    record["left_files"] = sorted(path.name for path in [*place.rglob("*.part"), *temporary.iterdir()])
    if not record["lost"]:
        log.unlink(missing_ok=True)
        for folder in (place, temporary):
            shutil.rmtree(folder)
    return record


def _main(pid: int) -> list[int]:
    return [pid]


def _worker(pid: int) -> list[int]:
    workers = [each for each, line in of_session(pid).items() if "popen_loky" in line]
    return workers[:1]


def _group(pid: int) -> list[int]:
    return list(of_session(pid))


INT, TERM, KILL, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGKILL, getattr(signal, "SIGHUP", signal.SIGTERM)
ENDINGS = {
    "main KILL": (_main, KILL, 1),
    "worker KILL": (_worker, KILL, 1),
    "group KILL": (_group, KILL, 1),
    "main TERM": (_main, TERM, 1),
    "group TERM, as timeout sends it": (_group, TERM, 1),
    "worker TERM": (_worker, TERM, 1),
    "main INT": (_main, INT, 1),
    "main HUP": (_main, HUP, 1),
    "group HUP, as a closed terminal sends it": (_group, HUP, 1),
    "Ctrl-C": (_group, INT, 1),
    "Ctrl-C twice": (_group, INT, 2),
}
TRACEBACK = re.compile(r'^Traceback.*\n  File "(?!.*resource_tracker\.py)', re.MULTILINE)
"""A traceback, but not of joblib's tracker of semaphores, which prints one if a closed terminal ends it."""
SWEEP = ["seed=1,2", "model.batchnorm=none,pre", "hydra.launcher.n_jobs=2", "trainer.max_steps=400", "trainer=cpu"]
JOBS = 4
SWEEP += ["trainer.engine=eager", "trainer.watch_every=37", "trainer.val_check_interval=50", "~callbacks.figures"]


def sweep_trial(name: str, how: str, scratch: Path, words: Path, reference: Path, seconds: float) -> Record:
    """End a sweep in one way at a random moment, resume it, and compare it with the same sweep undisturbed.

    Args: seconds: the time that the undisturbed one took.
    """
    draw = random.Random(name)
    directory, log = scratch / name, scratch / f"{name}.log"
    shutil.rmtree(directory, ignore_errors=True)
    overrides = [*fixed(words), *SWEEP]
    choose, number, times = ENDINGS[how]
    process = start_sweep([*overrides, f"hydra.sweep.dir='{directory}'"], log, {})
    record: Record = {"name": name, "how": how, "kills": 0, "left_behind": []}
    try:
        process.wait(draw.uniform(0.5, 0.9 * seconds))
    except subprocess.TimeoutExpired:
        for _ in range(times):
            record["done"] = len(list(directory.glob("*/metrics.json")))
            for pid in choose(process.pid):
                os.kill(pid, number)
                record["kills"] = 1
            time.sleep(draw.uniform(0, 0.3))
        if choose is _worker:
            process.wait(600)
    try:
        record["code"] = process.wait(60)
    except subprocess.TimeoutExpired:
        record["code"] = "does not end"
        process.kill()
    deadline = time.monotonic() + GONE
    while of_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    record["left_behind"] = list(of_session(process.pid).values())
    for pid in of_session(process.pid):
        os.kill(pid, KILL)
    again = start_sweep([*overrides, f"hydra.sweep.dir='{directory}'"], log, {})
    record["lost"] = [record["code"]] if isinstance(record["code"], str) else []
    record["lost"] += [] if again.wait(600) == 0 else [f"going on ends with {again.returncode}"]
    for job in sorted(path.parent.name for path in reference.glob("*/metrics.json")):
        record["lost"] += [f"{job}: {each}" for each in differences(directory / job, reference / job)]
    record["traceback"] = bool(TRACEBACK.search(log.read_text(errors="replace")))
    if not (record["lost"] or record["left_behind"] or record["traceback"]):
        shutil.rmtree(directory)
        log.unlink()
    return record


def tally(records: Sequence[Record]) -> str:
    """What was done and what was lost, as text."""
    lines = []
    for kind, of in (("runs", [r for r in records if "how" not in r]), ("sweeps", [r for r in records if "how" in r])):
        kills, lost = sum(r["kills"] for r in of), [r for r in of if r["lost"]]
        lines.append(f"{kind}: {len(of)} of them, {kills} kills, {len(lost)} differ from the undisturbed one")
        if kind == "runs":
            lines.append(f"  of these in writes of files: {sum(r['in_writes'] for r in of)}")
            lines.append(
                f"  with the run in memory and TMPDIR on disk: {sum(r['kills'] for r in of if r['in_memory'])}"
            )
            lines.append(f"  files left lying after going on: {sum(len(r.get('left_files', [])) for r in of)}")
        else:
            for how in ENDINGS:
                lines.append(f"  {how}: {sum(r['kills'] for r in of if r['how'] == how)}")
            unfinished = sum(bool(r["kills"]) and r["done"] < JOBS for r in of)
            lines.append(f"  of these while jobs were left to do: {unfinished}")
            lines.append(f"  processes left behind: {sum(len(r['left_behind']) for r in of)}")
            lines.append(f"  tracebacks: {sum(r['traceback'] for r in of)}")
        reasons = Counter(": ".join(each.split(": ")[: 2 if kind == "sweeps" else 1]) for r in of for each in r["lost"])
        lines += [f"  LOST {reason}: {count}" for reason, count in reasons.items()]
        lines += [f"    {r['name']} {r['lost'][:3]}" for r in lost]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of single runs (200)")
    parser.add_argument("--sweeps", type=int, default=30, help="sweeps to kill (30)")
    parser.add_argument("--compiled", type=float, default=0.1, help="share of runs with engine=compile (0.1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scratch", type=read_path, default=ROOT / "outputs" / "soak")
    arguments = read(parser)
    scratch = (arguments.scratch / f"seed{arguments.seed}").absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    words = scratch / "words.txt"
    listed = (ROOT / "makemore_pl" / "names" / "ssa_names_2018.txt").read_text(encoding="utf-8").split()
    words.write_text("\n".join(listed[:800]), encoding="utf-8")
    results = scratch / "results.jsonl"
    records = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {record["name"] for record in records}

    def keep(record: Record) -> None:
        records.append(record)
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(record["name"], record.get("how", ""), f"kills={record['kills']}", record["lost"] or "same", flush=True)

    warm()
    place = 0
    while sum(record["kills"] for record in records if "how" not in record) < arguments.kills:
        name = f"run{place}"
        place += 1
        if name not in done:
            keep(run_trial(name, scratch, words, random.Random(f"engine {name}").random() < arguments.compiled))
    reference = scratch / "sweep"
    if arguments.sweeps:
        shutil.rmtree(reference, ignore_errors=True)
        begun = time.monotonic()
        undisturbed = start_sweep([*fixed(words), *SWEEP, f"hydra.sweep.dir='{reference}'"], scratch / "sweep.log", {})
        if undisturbed.wait(600):
            sys.exit((scratch / "sweep.log").read_text())
        seconds = time.monotonic() - begun
    for place in range(arguments.sweeps):
        how = list(ENDINGS)[place % len(ENDINGS)]
        if (name := f"sweep{place}") not in done:
            keep(sweep_trial(name, how, scratch, words, reference, seconds))
    print(tally(records))
    sys.exit(any(record["lost"] or record.get("left_behind") or record.get("traceback") for record in records))


if __name__ == "__main__":
    with one_sentence():
        main()
