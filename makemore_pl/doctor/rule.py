"""A rule of the doctor: what it needs, its bound and the source of that, what it explains, and its remedy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from makemore_pl.doctor.evidence import Evidence
from makemore_pl.doctor.finding import Finding

Check = Callable[[Evidence], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One check."""

    id: str
    phase: str
    title: str
    needs: tuple[str, ...]
    """The quantities and facts that it needs, for people; without them it abstains."""
    bound: str
    source: str
    explains: tuple[str, ...]
    """Ids of findings that follow from this one."""
    remedy: str
    """Advice for any module, with a line of code where that helps."""
    picture: str
    """The picture or number to look at."""
    check: Check

    def __call__(self, evidence: Evidence) -> list[Finding]:
        """Raises Abstain if the rule can't judge."""
        return list(self.check(evidence))


RULES: dict[str, Rule] = {}
"""Rules by id. Causes come before their consequences."""
PHASES = ("start", "forward", "backward", "updates", "batchnorm", "outcome")


def rule(
    id: str,
    phase: str,
    title: str,
    *,
    needs: tuple[str, ...],
    bound: str,
    source: str,
    remedy: str,
    picture: str,
    explains: tuple[str, ...] = (),
) -> Callable[[Check], Check]:
    """Register a check."""
    assert phase in PHASES
    assert id not in RULES

    def register(check: Check) -> Check:
        RULES[id] = Rule(id, phase, title, needs, bound, source, explains, remedy, picture, check)
        return check

    return register
