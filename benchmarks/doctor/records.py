"""Runs cases and keeps what comes out, one JSON line a training, so that a second call goes on where one stopped."""

import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.doctor.case import Case, Outcome, Said, Verdict

ROOT = Path(__file__).parents[2]
SOURCES = ("makemore_pl/doctor", "makemore_pl/diagnostics")
WORKERS = 2
Key = tuple[str, str, str]
"""Half, family and name of a case."""


@dataclass(slots=True)
class Records:
    """What is known of cases."""

    losses: dict[Key, dict[int, float]] = field(default_factory=dict)
    """By seed."""
    guesses: dict[Key, float | None] = field(default_factory=dict)
    verdicts: dict[Key, dict[int, Verdict]] = field(default_factory=dict)
    """By seed."""

    def add(self, key: Key, seed: int, outcome: Outcome) -> None:
        self.losses.setdefault(key, {})[seed] = outcome.loss
        self.guesses[key] = self.guesses.get(key) or outcome.guess
        if outcome.verdict:
            self.verdicts.setdefault(key, {})[seed] = outcome.verdict


@dataclass(frozen=True, slots=True)
class Result:
    """A case, what its trainings and those of its mended twin ended at, and what the doctor said."""

    case: Case
    losses: list[float]
    mended: list[float]
    guess: float | None
    verdicts: dict[int, Verdict]
    """By seed."""


def fingerprint() -> str:
    """Of the doctor: verdicts of another one are made again. Where cases change, records are to be removed by hand."""
    digest = sha256()
    for path in sorted(each for source in SOURCES for each in (ROOT / source).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def measure(cases: Sequence[Case], path: Path, say: Callable[[str], None], verdicts: bool = True) -> list[Result]:
    """Train what `path` does not hold yet, two at a time; processes are forked.

    Args:
        verdicts: with the doctor, where a case is watched; else only what the test of harm needs beside that.
    """
    stamp = fingerprint()
    known = read(path, stamp)
    path.parent.mkdir(parents=True, exist_ok=True)
    TASKS[:] = _tasks(cases, known, verdicts)
    with path.open("a", encoding="utf-8") as file, ProcessPoolExecutor(WORKERS, mp_context=get_context("fork")) as pool:
        futures = {pool.submit(_run, place): task for place, task in enumerate(TASKS)}
        for done, future in enumerate(as_completed(futures), 1):
            (case, seed, _), outcome = futures[future], future.result()
            known.add(case.key, seed, outcome)
            record = {"sources": stamp, "case": case.key, "seed": seed, "outcome": asdict(outcome)}
            file.write(json.dumps(record) + "\n")
            file.flush()
            roots = "" if outcome.verdict is None else f", {' '.join(outcome.verdict.roots) or 'nothing'}"
            say(f"{done}/{len(TASKS)} {case.half} {case.name}, seed {seed}: {outcome.loss:.3g}{roots}")
    return [result(case, known) for case in cases]


def _tasks(cases: Sequence[Case], known: Records, verdicts: bool) -> list[tuple[Case, int, bool]]:
    """Case, seed, and whether with the doctor. What is healthy comes first, then cases as they fall, so that a run that
    is broken off has all of some, chosen at random.
    """
    faulty = [case for case in cases if case.roots]
    random.Random(0).shuffle(faulty)
    found = []
    for case in [*(case for case in cases if not case.roots), *faulty]:
        for seed in case.seeds:
            watched = seed in case.watched
            there = known.verdicts if watched else known.losses
            if (verdicts or not watched) and seed not in there.get(case.key, {}):
                found.append((case, seed, watched))
    return found


def result(case: Case, known: Records) -> Result:
    """What is known of a case; losses are in the order of the seeds."""
    losses = known.losses.get(case.key, {})
    mended = known.losses.get((case.half, case.family, case.twin), {}) if case.twin else {}
    return Result(
        case,
        [losses[seed] for seed in sorted(losses)],
        [mended[seed] for seed in sorted(mended)],
        known.guesses.get(case.key),
        known.verdicts.get(case.key, {}),
    )


TASKS: list[tuple[Case, int, bool]] = []
"""For the forked processes."""


def _run(place: int) -> Outcome:
    case, seed, watched = TASKS[place]
    return case.run(seed, watched)


def read(path: Path, stamp: str) -> Records:
    """Losses, and verdicts of the doctor with this fingerprint; half a line, from a kill, is left out."""
    found = Records()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        loss, guess, verdict = (record["outcome"][name] for name in ("loss", "guess", "verdict"))
        said = verdict and Verdict(tuple(Said(**each) for each in verdict["said"]), verdict["found_at"])
        half, family, name = record["case"]
        current = said if record["sources"] == stamp else None
        found.add((half, family, name), record["seed"], Outcome(loss, guess, current))
    return found
