"""Which cases are run."""

from collections.abc import Sequence

from benchmarks.doctor.case import FAMILIES, HALVES, Case
from benchmarks.doctor.configurations import configurations
from benchmarks.doctor.modules import modules

QUICK = 12
"""Every twelfth case."""


def chosen(half: str | None, family: str | None, only: Sequence[str] | None, quick: bool) -> list[Case]:
    """Cases of a half and a family whose names hold one of `only`, with the twins that these need.

    Raises:
        ValueError: there is none.
    """
    every = [
        case
        for each in ([half] if half else HALVES)
        for kind, make in zip(FAMILIES, (configurations, modules), strict=True)
        if family in (None, kind)
        for case in make(each)
    ]
    wanted = [case for case in every if not only or any(part in case.name for part in only)]
    wanted = wanted[:: QUICK if quick else 1]
    if not wanted:
        raise ValueError(f"--only: no case has {' or '.join(only or [])} in its name.")
    twins = {(case.half, case.family, case.twin) for case in wanted}
    return [case for case in every if case in wanted or (case.half, case.family, case.name) in twins]
