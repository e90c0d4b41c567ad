"""What a case is: a training of one kind from several seeds, with what the doctor should say of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

HALVES = ("tuning", "reporting")
FAMILIES = ("configuration", "module")
SEEDS = 5
"""Trainings of each case, for the test of harm."""
WATCHED, WATCHED_HEALTHY = 2, 3
"""Of these, the first ones have the doctor; it changes nothing, so that the others' losses tell as much."""
SHIFT = {"tuning": 0, "reporting": 3000}
"""First seed of each half."""
DRAW = {"tuning": "tuning", "reporting": "reporting, third draw"}
"""Seeds the draw of each half. Whoever has read a list of misses of the reporting half draws it anew."""


@dataclass(frozen=True, slots=True)
class Said:
    """One finding."""

    id: str
    severity: str
    because_of: str | None = None

    @property
    def is_root(self) -> bool:
        """Above information, and nothing explains it."""
        return self.severity != "info" and self.because_of is None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the doctor said of one training, in its order."""

    said: tuple[Said, ...]
    found_at: Mapping[str, int] = field(default_factory=dict)
    """Id -> first step at which the evidence was enough."""

    @property
    def roots(self) -> list[str]:
        return [each.id for each in self.said if each.is_root]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One training."""

    loss: float
    """Harm, lower is better: a loss on held-out examples in the healthy training's units; inf where not finite."""
    guess: float | None
    """What the best constant guess costs in the same units; None where there is no such guess."""
    verdict: Verdict | None
    """None where the doctor was not there."""


@dataclass(frozen=True, slots=True)
class Case:
    """A healthy training, or one with faults and the name of its mended twin."""

    name: str
    family: str
    """configuration or module."""
    half: str
    """tuning or reporting."""
    run: Callable[[int, bool], Outcome]
    """By seed, with the doctor or without."""
    faults: tuple[str, ...] = ()
    roots: tuple[frozenset[str], ...] = ()
    """For each fault the ids that name it; none for a healthy case."""
    twin: str | None = None
    """The same training without the faults."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.half, self.family, self.name

    @property
    def seeds(self) -> range:
        return range(SHIFT[self.half], SHIFT[self.half] + SEEDS)

    @property
    def watched(self) -> range:
        """Seeds with the doctor."""
        return self.seeds[: WATCHED if self.roots else WATCHED_HEALTHY]
