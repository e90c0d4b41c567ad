"""The doctor's verdict at the top of a page: causes first, and below each cause the findings that follow from it."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import makemore_pl.doctor.diagnosis  # noqa: F401  # registers the rules
from makemore_pl.command_line import anywhere
from makemore_pl.doctor.rule import RULES
from makemore_pl.figures.layer_names import spoken
from makemore_pl.report.command import applied, command_of
from makemore_pl.report.run_directory import Run
from makemore_pl.report.section import Block, Code, Finding, Note, Verdict
from makemore_pl.report.wording import as_text, significant

DOCUMENT = Path(__file__).parents[2] / "docs" / "doctor.md"
SEVERITIES = ("critical", "warning", "info")
"""From the worst to the least; unknown ones come after these."""


def verdict(run: Run, place: Path, start: Mapping[str, Any] | None = None, of: str = "") -> list[Block]:
    """The section with the verdict; none if the run had no doctor.

    Args:
        place: the folder of the page. Links to docs/doctor.md are relative to it.
        start: as for command_of.
        of: the name of the run, if the page has several verdicts.
    """
    if not run.diagnosis:
        return []
    told = _trees(run.findings, (run.diagnosis.get("prescriptions") or []), os.path.relpath(DOCUMENT, place))
    causes = sum(finding.severity != "info" for finding in told)
    following = len(run.findings) - len(told)
    counts = (
        (causes, "cause", "causes"),
        (following, "finding that follows", "findings that follow"),
        (len(told) - causes, "to know", "to know"),
    )
    counted = ", ".join(f"{n} {one if n == 1 else many}" for n, one, many in counts if n)
    checked = len(run.diagnosis.get("checked") or [])
    healthy = f"Healthy: {checked} checks found nothing wrong." if checked else "Nothing could be checked."
    lead = " ".join([*([] if causes else [healthy]), *([f"{counted}."] if counted else [])])
    abstained = [
        f"{abstention['id']}: {abstention['reason']}"
        for abstention in run.diagnosis.get("abstentions") or []
        if abstention.get("applies", True)
    ]
    blocks: list[Block] = [Verdict(f"{of}: {lead}" if of else lead, told, abstained)]
    command, changes = command_of(run, start), changes_of(run)
    if command is not None and changes:
        blocks += [Note("Run it with these changes:"), Code(anywhere("train.py", *applied(command, changes)))]
    return blocks


def changes_of(run: Run) -> list[str]:
    """Every override that the doctor prescribes and no run has refuted."""
    prescriptions = [
        prescription for prescription in (run.diagnosis.get("prescriptions") or []) if not _is_refuted(prescription)
    ]
    return [override for prescription in prescriptions for override in prescription["overrides"]]


def _trees(findings: list[dict[str, Any]], prescriptions: list[dict[str, Any]], document: str) -> list[Finding]:
    """Findings that no other one explains, each with the findings that it explains. Each finding occurs once."""
    ordered = sorted(findings, key=lambda finding: _rank(finding["severity"]))
    left = list(ordered)

    def grown(finding: dict[str, Any]) -> Finding:
        followers = [other for other in left if other.get("because_of") == finding["id"]]
        for follower in followers:
            left.remove(follower)
        return _finding(finding, prescriptions, document, [grown(follower) for follower in followers])

    ids = {finding["id"] for finding in findings}
    trees = []
    for root in [finding for finding in ordered if finding.get("because_of") not in ids]:
        left.remove(root)
        trees.append(grown(root))
    while left:  # these explain each other in a circle
        trees.append(grown(left.pop(0)))
    return trees


def _finding(
    finding: dict[str, Any], prescriptions: list[dict[str, Any]], document: str, followers: list[Finding]
) -> Finding:
    own, severity = finding["id"], finding["severity"]
    value, bound, step = (finding.get(key) for key in ("value", "bound", "step"))
    measured = [f"measured {_number(value)}"] if value is not None else []
    measured += [f"bound {_number(bound)}"] if bound is not None else []
    where = ", ".join(spoken(name.strip()) for name in (finding.get("where") or "").split(","))
    at = f"step {step:,}" if step is not None else ""
    details = [where, at, ", ".join(measured), finding.get("source")]
    remedies = [
        (shlex.join(prescription["overrides"]), prescription.get("rationale") or "")
        for prescription in prescriptions
        if prescription["finding"] == own and not _is_refuted(prescription)
    ]
    colour = severity if severity in SEVERITIES else "info"
    message = re.sub(r"\blayers\.\d+(?:\.\w+)*", lambda found: spoken(found[0]), finding.get("message") or own)
    told = " · ".join(filter(None, details))
    title = RULES[own].title if own in RULES else ""
    return Finding(own, title, severity, colour, message, told, f"{document}#{own}", remedies, followers)


def _is_refuted(prescription: dict[str, Any]) -> bool:
    return prescription.get("verified") == "refuted"


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def _number(value: Any) -> str:
    return significant(value) if isinstance(value, float) else as_text(value)
