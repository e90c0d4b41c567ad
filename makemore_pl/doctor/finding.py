"""What the doctor says: findings, abstentions, prescriptions, and the diagnosis that holds them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FINDINGS_FORMAT = 1
"""The version of the format of findings.json."""
SEVERITIES = ("info", "warning", "critical")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    id: str
    severity: str
    """info, warning or critical."""
    where: str
    """Layer, parameter or quantity; several are separated by commas."""
    step: int
    """The step at which the evidence was measured."""
    value: float | None
    """The measured number; None if there is none."""
    bound: float | None
    """The bound that the value has passed; None if there is no number."""
    source: str
    """Where the bound comes from."""
    message: str
    """One or two sentences with the numbers."""
    because_of: str | None = None
    """The id of the finding that explains this one."""

    def __post_init__(self) -> None:
        assert self.severity in SEVERITIES, self.severity


@dataclass(frozen=True, slots=True)
class Abstention:
    """A check that could not be made."""

    id: str
    reason: str
    applies: bool = True
    """False where there is nothing of the kind that it judges, so that nothing was missed."""


@dataclass(frozen=True, slots=True)
class Prescription:
    """A change that should mend what was found."""

    finding: str
    """The id of the finding."""
    overrides: tuple[str, ...]
    """Hydra overrides of this project; empty for modules of other projects."""
    rationale: str
    """Why, and by which formula; for modules of other projects, the change itself."""
    predicted: Mapping[str, float] = field(default_factory=dict)
    """Tag or quantity -> the value expected afterwards."""
    alternatives: tuple[tuple[str, ...], ...] = ()
    """Other overrides that mend it too."""
    verified: str | None = None
    """verified, refuted or no difference, after it was run again; None before that."""
    trial: str = ""
    """The losses of these runs."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result: findings that no other one explains, then those that are explained, then information."""

    findings: tuple[Finding, ...]
    abstentions: tuple[Abstention, ...]
    checked: tuple[str, ...]
    """Ids of every check that ran."""
    prescriptions: tuple[Prescription, ...] = ()
    unseen: int = 0
    """Steps before the first one that was seen, of a resumed run."""

    @property
    def roots(self) -> tuple[Finding, ...]:
        """Findings above info that no other one explains."""
        return tuple(each for each in self.findings if each.severity != "info" and each.because_of is None)

    def worst(self) -> str | None:
        """The highest severity, None without findings."""
        return max((each.severity for each in self.findings), key=SEVERITIES.index, default=None)

    def as_json(self) -> dict[str, Any]:
        """The content of findings.json; a number that is not finite becomes null."""
        return {
            "version": FINDINGS_FORMAT,
            "findings": [_finite(asdict(each)) for each in self.findings],
            "abstentions": [asdict(each) for each in self.abstentions],
            "checked": list(self.checked),
            "prescriptions": [_finite(asdict(each)) for each in self.prescriptions],
        }


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
