"""Runs cases and keeps what comes out, one JSON line a training, so that a second call goes on where one stopped."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.doctor.case import Case, Outcome, Said

ROOT = Path(__file__).parents[2]
SOURCES = ("makemore_pl/doctor", "makemore_pl/diagnostics")
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Result:
    """A case, its trainings by seed, and those of its mended twin."""

    case: Case
    outcomes: list[Outcome]
    mended: list[Outcome]


def fingerprint() -> str:
    """Of the doctor. Where trainings or modules change, the records are to be removed by hand."""
    digest = sha256()
    for path in sorted(each for source in SOURCES for each in (ROOT / source).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def measure(cases: Sequence[Case], path: Path, say: Callable[[str], None]) -> list[Result]:
    """Train what `path` does not hold yet of these sources, two at a time; processes are forked.

    Raises:
        ValueError: a case's twin is not among the cases.
    """
    stamp = fingerprint()
    known = read(path, stamp)
    todo = [(case, seed) for case in cases for seed in case.seeds if (*_key(case), seed) not in known]
    CASES[:] = [case for case, _ in todo]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, ProcessPoolExecutor(WORKERS, mp_context=get_context("fork")) as pool:
        futures = {pool.submit(_run, place, seed): (case, seed) for place, (case, seed) in enumerate(todo)}
        for done, future in enumerate(as_completed(futures), 1):
            (case, seed), outcome = futures[future], future.result()
            known[(*_key(case), seed)] = outcome
            record = {"sources": stamp, "case": list(_key(case)), "seed": seed, "outcome": asdict(outcome)}
            file.write(json.dumps(record) + "\n")
            file.flush()
            said = " ".join(each.id for each in outcome.said if each.severity != "info") or "nothing"
            say(f"{done}/{len(todo)} {case.half} {case.name}, seed {seed}: {outcome.loss:.3g}, {said}")
    outcomes = defaultdict(list)
    for case in cases:
        outcomes[_key(case)] = [known[(*_key(case), seed)] for seed in case.seeds]
    return [Result(case, outcomes[_key(case)], _mended(case, outcomes)) for case in cases]


def _mended(case: Case, outcomes: dict[tuple[str, str, str], list[Outcome]]) -> list[Outcome]:
    if case.twin is None:
        return []
    twin = (case.half, case.family, case.twin)
    if twin not in outcomes:
        raise ValueError(f"{case.name} has no mended twin among the cases: {case.twin}.")
    return outcomes[twin]


def _key(case: Case) -> tuple[str, str, str]:
    return case.half, case.family, case.name


CASES: list[Case] = []
"""For the forked processes, one for each task."""


def _run(place: int, seed: int) -> Outcome:
    return CASES[place].run(seed)


def read(path: Path, stamp: str) -> dict[tuple[str, str, str, int], Outcome]:
    """Outcomes by half, family, case and seed; half a line, from a kill, and those of other sources are left out."""
    found: dict[tuple[str, str, str, int], Outcome] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if record["sources"] == stamp:
            outcome = record["outcome"]
            said = tuple(Said(**each) for each in outcome["said"])
            half, family, name = record["case"]
            found[half, family, name, record["seed"]] = Outcome(**{**outcome, "said": said})
    return found
