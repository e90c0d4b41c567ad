"""The doctor's verdict at the top of a page: causes first, and below each cause the findings that follow from it."""

import os
import shlex
from pathlib import Path
from typing import Any

from makemore_pl.figures.canvas import spoken
from makemore_pl.report.run_directory import Run
from makemore_pl.report.section import Finding, Section, Verdict
from makemore_pl.report.wording import plain, significant

DOCUMENT = Path(__file__).parents[2] / "docs" / "doctor.md"
SEVERITIES = ("critical", "warning", "info")
"""From the worst to the least; unknown ones come after these."""


def verdict(run: Run, place: Path) -> list[Section]:
    """The section with the verdict; none if the run had no doctor.

    Args:
        place: the folder of the page. Links to docs/doctor.md are relative to it.
    """
    if not run.diagnosis:
        return []
    told = _trees(run.findings, _records(run.diagnosis, "prescriptions"), os.path.relpath(DOCUMENT, place))
    causes = sum(each.severity != "info" for each in told)
    notes = len(told) - causes
    following = len(run.findings) - len(told)
    counts = ((causes, "cause", "causes"), (following, "that follows", "that follow"), (notes, "note", "notes"))
    counted = ", ".join(f"{n} {one if n == 1 else many}" for n, one, many in counts if n)
    lead = f"{counted[:1].upper()}{counted[1:]}." if causes else f"Nothing found that harms this run. {counted}".strip()
    abstained = [f"{each.get('id')}: {each.get('reason')}" for each in _records(run.diagnosis, "abstentions")]
    return [Section("Verdict", [Verdict(lead, told, abstained)])]


def _trees(findings: list[dict[str, Any]], prescriptions: list[dict[str, Any]], document: str) -> list[Finding]:
    """Findings that no other one explains, each with the findings that it explains. Each finding occurs once."""
    ordered = sorted(findings, key=lambda each: _rank(str(each.get("severity"))))
    left = list(ordered)

    def grown(finding: dict[str, Any]) -> Finding:
        followers = [each for each in left if each.get("because_of") == finding.get("id")]
        for each in followers:
            left.remove(each)
        return _finding(finding, prescriptions, document, [grown(each) for each in followers])

    ids = {each.get("id") for each in findings}
    trees = []
    for root in [each for each in ordered if each.get("because_of") not in ids]:
        left.remove(root)
        trees.append(grown(root))
    while left:  # these explain each other in a circle
        trees.append(grown(left.pop(0)))
    return trees


def _finding(
    finding: dict[str, Any], prescriptions: list[dict[str, Any]], document: str, followers: list[Finding]
) -> Finding:
    own, severity = str(finding.get("id")), str(finding.get("severity"))
    value, bound, step = (finding.get(key) for key in ("value", "bound", "step"))
    measured = [_number(value)] if value is not None else []
    measured += [f"bound {_number(bound)}"] if bound is not None else []
    where = ", ".join(spoken(each.strip()) for each in str(finding.get("where") or "").split(","))
    at = f"step {step:,}" if isinstance(step, int) else ""
    details = [where, at, ", ".join(measured), plain(finding.get("source"))]
    remedies = [
        (shlex.join(map(str, each.get("overrides") or [])), plain(each.get("rationale")))
        for each in prescriptions
        if each.get("finding") == own and not _is_refuted(each)
    ]
    colour = severity if severity in SEVERITIES else "info"
    message = str(finding.get("message") or own)
    told = " · ".join(filter(None, details))
    return Finding(own, severity, colour, message, told, f"{document}#{own}", remedies, followers)


def _is_refuted(prescription: dict[str, Any]) -> bool:
    return prescription.get("verified") == "refuted"


def _records(diagnosis: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [each for each in diagnosis.get(kind) or [] if isinstance(each, dict)]


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def _number(value: Any) -> str:
    return significant(value) if isinstance(value, float) else plain(value)
