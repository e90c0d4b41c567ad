"""The doctor's verdict as it stands at the top of a page: roots first, and below each what follows from it."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from makemore_pl.figures.canvas import spoken
from makemore_pl.report.run_directory import Run
from makemore_pl.report.section import Finding, Section, Verdict
from makemore_pl.report.wording import plain, significant

DOCUMENT = Path(__file__).parents[2] / "docs" / "doctor.md"
SEVERITIES = ("critical", "error", "warning", "info")
"""The worst first; others come last."""


def verdict(run: Run, place: Path) -> list[Section]:
    """Nothing where no doctor has looked.

    Args:
        place: the folder of the page, from which it links to docs/doctor.md.
    """
    if not run.examined:
        return []
    document = os.path.relpath(DOCUMENT, place)
    findings = sorted(run.findings, key=lambda each: _rank(str(each.get("severity", ""))))
    ids = {str(each.get("id")) for each in findings}
    roots = [each for each in findings if not _causes(each) & ids - {str(each.get("id"))}]
    told = [_finding(root, findings, document, ()) for root in roots or findings]
    worst = [f"{len(told)} of its own cause" if len(told) != len(findings) else ""]
    counted = f"{len(findings)} {'finding' if len(findings) == 1 else 'findings'}"
    lead = ", ".join([counted, *filter(None, worst)]) + "." if findings else "Nothing found that harms this run."
    abstained = [f"{each.get('id', '')}: {each.get('reason', '')}".strip(": ") for each in run.abstentions]
    return [Section("Verdict", [Verdict(lead, told, abstained)])]


def _finding(
    finding: dict[str, Any], every: Iterable[dict[str, Any]], document: str, above: tuple[str, ...]
) -> Finding:
    own = str(finding.get("id"))
    followers = [
        _finding(each, every, document, (*above, own))
        for each in every
        if own in _causes(each) and str(each.get("id")) not in (*above, own)
    ]
    value, bound = finding.get("value"), finding.get("bound")
    measured = (
        f"{_number(value)}, bound {_number(bound)}" if value is not None and bound is not None else _number(value)
    )
    step = finding.get("step")
    where = ", ".join(spoken(each) for each in _words(finding.get("where")))
    details = [where, f"step {step:,}" if isinstance(step, int) else "", measured, plain(finding.get("source"))]
    severity = str(finding.get("severity", ""))
    return Finding(
        own,
        severity,
        severity if severity in SEVERITIES else "info",
        str(finding.get("message") or own),
        " · ".join(filter(None, details)),
        f"{document}#{own}",
        followers,
    )


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def _causes(finding: dict[str, Any]) -> set[str]:
    return set(_words(finding.get("because_of")))


def _words(value: Any) -> list[str]:
    return [str(each) for each in (value if isinstance(value, list) else [value]) if each is not None]


def _number(value: Any) -> str:
    return significant(value) if isinstance(value, float) else plain(value)
