"""Recall, precision, false alarms and delays, counted from results."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.doctor.case import SEEDS, Case, Verdict
from benchmarks.doctor.harm import LEVEL, permutation_p
from benchmarks.doctor.records import Result

LEARNED = 0.9
"""Share of a constant guess's loss below which a healthy training has learned something."""


@dataclass(slots=True)
class Row:
    """Of one id."""

    hits: int = 0
    misses: int = 0
    false: int = 0
    delays: list[int] = field(default_factory=list)

    @property
    def recall(self) -> float | None:
        return _share(self.hits, self.hits + self.misses)

    @property
    def precision(self) -> float | None:
        return _share(self.hits, self.hits + self.false)

    @property
    def delay(self) -> float | None:
        """Median of steps."""
        return median(self.delays) if self.delays else None


@dataclass(slots=True)
class Counts:
    """Of one family in one half."""

    rows: dict[str, Row] = field(default_factory=dict)
    """By the id that a fault must yield; where several name it, the first one's."""
    healthy: int = 0
    alarms: int = 0
    """Healthy runs with a finding above information."""
    single: int = 0
    first: int = 0
    """Runs with a single fault that was named first."""
    confusion: dict[str, Counter[str]] = field(default_factory=dict)
    """What was to be said -> what came first."""
    misses: list[str] = field(default_factory=list)
    false: list[str] = field(default_factory=list)
    hurting: int = 0
    """Cases with a fault that hurts."""
    harmless: list[str] = field(default_factory=list)
    """Cases with a fault that does not, with its p."""
    unlearned: list[str] = field(default_factory=list)
    """Cases without a fault that learned nothing, and so are not healthy."""

    @property
    def recall(self) -> float | None:
        """Macro: the mean over ids."""
        known = [row.recall for row in self.rows.values() if row.recall is not None]
        return sum(known) / len(known) if known else None

    @property
    def precision(self) -> float | None:
        """Of all that was said as a root."""
        hits = sum(row.hits for row in self.rows.values())
        return _share(hits, hits + sum(row.false for row in self.rows.values()))

    @property
    def root_first(self) -> float | None:
        return _share(self.first, self.single)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def p_of_harm(result: Result) -> float | None:
    """None while a seed of the case or of its twin is missing."""
    complete = len(result.losses) == len(result.mended) == SEEDS
    return permutation_p(result.losses, result.mended) if complete else None


def count(results: Sequence[Result]) -> Counts:
    """Cases whose harm is not known yet are left out."""
    counts = Counts()
    for result in results:
        case, p = result.case, p_of_harm(result)
        if not case.roots:
            _count_healthy(counts, result)
        elif p is not None:
            hurts = p < LEVEL
            counts.hurting += hurts
            if not hurts:
                counts.harmless.append(f"{case.name} (p = {p:.2f}; {_named(result)})")
            for seed, verdict in sorted(result.verdicts.items()):
                if hurts:
                    _count_faulty(counts, case, seed, verdict)
                else:
                    _count_false(counts, case, seed, verdict)
    counts.rows = dict(sorted(counts.rows.items()))
    return counts


def _named(result: Result) -> str:
    ids = frozenset[str]().union(*result.case.roots)
    named = sum(any(each.id in ids for each in verdict.said) for verdict in result.verdicts.values())
    return f"named in {named} of {len(result.verdicts)}"


def _count_healthy(counts: Counts, result: Result) -> None:
    if not result.losses:
        return
    if result.guess is not None and median(result.losses) > LEARNED * result.guess:
        counts.unlearned.append(result.case.name)
        return
    for seed, verdict in sorted(result.verdicts.items()):
        counts.healthy += 1
        counts.alarms += _count_false(counts, result.case, seed, verdict)
        _confuse(counts, "healthy", verdict)


def _count_faulty(counts: Counts, case: Case, seed: int, verdict: Verdict) -> None:
    said = [each.id for each in verdict.said if each.severity != "info"]
    for ids, fault in zip(case.roots, case.faults, strict=True):
        row = _row(counts, main_id(case, fault))
        found = [id for id in said if id in ids]
        if found:
            row.hits += 1
            row.delays.append(min(verdict.found_at[id] for id in found))
        else:
            row.misses += 1
            instead = ", ".join(verdict.roots) or "nothing"
            counts.misses.append(f"{main_id(case, fault)} missed, {instead} said: {case.name}, seed {seed}")
    _count_false(counts, case, seed, verdict)
    _confuse(counts, " + ".join(main_id(case, fault) for fault in case.faults), verdict)
    if len(case.roots) == 1:
        counts.single += 1
        counts.first += verdict.roots[:1] != [] and verdict.roots[0] in case.roots[0]


def _count_false(counts: Counts, case: Case, seed: int, verdict: Verdict) -> bool:
    """Roots that name none of the faults."""
    right = frozenset[str]().union(*case.roots)
    wrong = [id for id in verdict.roots if id not in right]
    for id in wrong:
        _row(counts, id).false += 1
        counts.false.append(f"{id} said: {case.name}{'' if case.roots else ', healthy'}, seed {seed}")
    return bool(wrong)


def _confuse(counts: Counts, wanted: str, verdict: Verdict) -> None:
    counts.confusion.setdefault(wanted, Counter())[(verdict.roots or ["nothing"])[0]] += 1


def main_id(case: Case, fault: str) -> str:
    """The id under which a fault is counted: the first one in its table."""
    from benchmarks.doctor import configurations, module_faults

    table = configurations.BY_NAME if case.family == "configuration" else module_faults.BY_NAME
    return table[fault].ids[0]


def _row(counts: Counts, id: str) -> Row:
    return counts.rows.setdefault(id, Row())
