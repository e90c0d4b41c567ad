"""How often the doctor is right: cases with measured harm, counted per rule, on a half that no bound was tuned on."""

import itertools
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.doctor_cases import Case, Outcome, configurations
from benchmarks.doctor_modules import modules
from makemore_pl.doctor.diagnosis import diagnose
from makemore_pl.doctor.evidence import Evidence

LEVEL = 0.05
STEPS = ["trainer.max_steps=1500", "trainer.watch_every=50", "trainer.val_check_interval=375"]
PARTS = [(family, half) for family in ("configuration", "module") for half in ("tuning", "reporting")]
HEADER = ["id", "cases", "recall", "precision", "false alarms", "delay, steps"]


def train(overrides: list[str], seed: int) -> Outcome:
    """One short training of this project."""
    import hydra

    from makemore_pl import checkup
    from makemore_pl.command_line import typed
    from makemore_pl.config import resolve
    from makemore_pl.doctor.recorded_run import read_evidence

    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        settings = [*checkup.QUICK, *STEPS, *overrides, f"seed={seed}", f"run_dir={typed(str(run_dir))}"]
        with hydra.initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
            config = resolve(hydra.compose("train", overrides=settings))
        loss = checkup.trained(config)
        evidence, _ = read_evidence(run_dir)
    return outcome(loss, evidence)


def outcome(loss: float, evidence: Evidence) -> Outcome:
    """What the doctor says of it, and from which step on."""
    findings = tuple((each.id, each.severity, each.because_of) for each in diagnose(evidence).findings)
    found_at: dict[str, int] = {}
    steps = sorted({step for each in evidence.series.values() for step in each})
    for step in steps[:: max(1, len(steps) // 12)]:
        early = {tag: {at: x for at, x in each.items() if at <= step} for tag, each in evidence.series.items()}
        known = Evidence({tag: each for tag, each in early.items() if each}, evidence.facts, final=False)
        for finding in diagnose(known).findings:
            found_at.setdefault(finding.id, step)
    return Outcome(loss, findings, found_at)


@dataclass(frozen=True, slots=True)
class Result:
    """A case and its trainings."""

    case: Case
    faulty: list[Outcome]
    mended: list[Outcome]

    @property
    def p(self) -> float:
        """That a fault which does nothing hurts as much as this one: one-sided permutation test."""
        return permutation_p([each.loss for each in self.faulty], [each.loss for each in self.mended])

    @property
    def counts(self) -> bool:
        """Whether it says something about the doctor: healthy, or a fault that hurts."""
        return not self.case.roots or self.p < LEVEL


def permutation_p(worse: Sequence[float], better: Sequence[float]) -> float:
    """One-sided p-value of the exact permutation test on rank means; what is not finite counts as the worst."""
    values = [each if math.isfinite(each) else 1e3 for each in (*worse, *better)]
    ranks = {
        value: sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values
    }
    scores = [ranks[value] for value in values]
    seen = sum(scores[: len(worse)])
    sums = [sum(chosen) for chosen in itertools.combinations(scores, len(worse))]
    return sum(each >= seen - 1e-9 for each in sums) / len(sums)


def measure(quick: bool, seeds: int, say: Callable[[str], None]) -> list[Result]:
    """Run all cases. Processes are forked, so that cases need not be pickled."""
    cases = [*configurations(2 if quick else 20, 1, train), *modules(quick)]
    tasks = [
        (number, twin, seed)
        for number, case in enumerate(cases)
        for twin in ((False, True) if case.twin else (False,))
        for seed in range(seeds)
    ]
    CASES[:] = cases
    found: dict[tuple[int, bool], list[Outcome]] = defaultdict(list)
    with ProcessPoolExecutor(2, mp_context=_forking()) as pool:
        for (number, twin, seed), done in zip(tasks, pool.map(_run, tasks), strict=True):
            found[number, twin].append(done)
            if seed == seeds - 1:
                said = sorted({each[0] for each in done.findings if each[1] != "info"})
                say(f"{cases[number].name}{' mended' if twin else ''}: {done.loss:.3f} {' '.join(said)}")
    return [Result(case, found[n, False], found[n, True]) for n, case in enumerate(cases)]


CASES: list[Case] = []
"""For the forked processes."""


def _run(task: tuple[int, bool, int]) -> Outcome:
    number, twin, seed = task
    run = CASES[number].twin if twin else CASES[number].run
    assert run
    return run(seed)


def _forking() -> Any:
    import multiprocessing

    return multiprocessing.get_context("fork")


def summary(results: list[Result], family: str, half: str) -> dict[str, Any]:
    """Recall, precision, false alarms, delays, confusion, and every case that went wrong."""
    mine = [each for each in results if each.case.family == family and each.case.half == half]
    counted = [each for each in mine if each.counts]
    hits, misses, wrong, delays = Counter[str](), Counter[str](), Counter[str](), defaultdict[str, list[int]](list)
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    listed: list[str] = []
    alarms = healthy = first = single = 0
    for result in counted:
        wanted = set(result.case.roots)
        for seed, done in enumerate(result.faulty):
            roots = [id for id, severity, because in done.findings if severity != "info" and because is None]
            said = {id for id, *_ in done.findings}
            for id in wanted:
                (hits if id in said else misses)[id] += 1
                if id in said:
                    delays[id].append(done.found_at.get(id, -1))
                else:
                    listed.append(f"missed {id}: {result.case.name}, seed {seed}, said {', '.join(roots) or 'nothing'}")
            for id in roots:
                if id not in wanted:
                    wrong[id] += 1
                    listed.append(f"false {id}: {result.case.name}, seed {seed}")
            if len(wanted) == 1:
                single += 1
                first += bool(roots) and roots[0] in wanted
            confusion[" + ".join(sorted(wanted)) or "healthy"][roots[0] if roots else "nothing"] += 1
            if not wanted:
                healthy += 1
                alarms += bool(roots)
        for seed, done in enumerate(result.mended):
            healthy += 1
            roots = [id for id, severity, because in done.findings if severity != "info" and because is None]
            alarms += bool(roots)
            for id in roots:
                wrong[id] += 1
                listed.append(f"false {id}: mended {result.case.name}, seed {seed}")
    ids = sorted(set(hits) | set(misses) | set(wrong))
    recall = {id: hits[id] / (hits[id] + misses[id]) for id in ids if hits[id] + misses[id]}
    return {
        "rows": [
            [
                id,
                hits[id] + misses[id],
                recall.get(id),
                hits[id] / (hits[id] + wrong[id]) if hits[id] + wrong[id] else None,
                wrong[id],
                sorted(delays[id])[len(delays[id]) // 2] if delays[id] else None,
            ]
            for id in ids
        ],
        "macro recall": sum(recall.values()) / len(recall) if recall else None,
        "precision": sum(hits.values()) / max(1, sum(hits.values()) + sum(wrong.values())),
        "healthy runs": healthy,
        "healthy runs with an alarm": alarms,
        "root first": first / single if single else None,
        "faults that hurt": sum(bool(each.case.roots) for each in counted),
        "faults without measured harm": [each.case.name for each in mine if not each.counts],
        "confusion": {key: dict(value) for key, value in confusion.items()},
        "wrong": listed,
    }


def title(family: str, half: str, found: dict[str, Any]) -> str:
    """One line for a table."""
    numbers = [
        f"{name} {found[name]:.2f}" for name in ("macro recall", "precision", "root first") if found[name] is not None
    ]
    alarms = f"{found['healthy runs with an alarm']} of {found['healthy runs']} healthy runs with an alarm"
    return f"{family}s, {half} half: {', '.join(numbers)}, {alarms}, {found['faults that hurt']} faults that hurt"


def rows(found: dict[str, Any]) -> list[list[str]]:
    return [
        ["-" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row]
        for row in found["rows"]
    ]
