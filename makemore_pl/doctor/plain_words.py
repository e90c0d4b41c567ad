"""Writes a diagnosis as sentences."""

from makemore_pl.doctor.finding import Diagnosis, Finding
from makemore_pl.doctor.rule import RULES

ROOTS = 2
"""How many root findings the verdict describes in full."""


def verdict(diagnosis: Diagnosis, whole: bool = True) -> list[str]:
    """The diagnosis in a few lines; with `whole`, also what could not be checked."""
    roots = diagnosis.roots
    information = [each for each in diagnosis.findings if each.severity == "info"]
    lines = []
    if not roots:
        healthy = "" if diagnosis.unseen else "Healthy: "
        lines.append(f"{healthy}{len(diagnosis.checked)} checks found nothing wrong.")
    if diagnosis.unseen:
        lines.append(f"The first {diagnosis.unseen:,} steps were not seen, so what needs the start was not checked.")
    remedies = {each.finding: each for each in diagnosis.prescriptions}
    for number, finding in enumerate(roots[:ROOTS], 1):
        lines.append(f"{number}. {told(finding)}")
        if remedy := remedies.get(finding.id):
            change = f"{' '.join(remedy.overrides)}: {remedy.rationale}" if remedy.overrides else remedy.rationale
            lines.append(f"   Change {change}." if remedy.overrides else f"   {change}")
            if remedy.verified:
                lines.append(f"   {remedy.verified}: {remedy.trial}.")
    if len(roots) > ROOTS:
        lines.append(f"Also: {', '.join(f'{each.id} ({each.severity})' for each in roots[ROOTS:])}.")
    consequences: dict[str, list[str]] = {}
    for finding in diagnosis.findings:
        if finding.because_of and finding.severity != "info":
            consequences.setdefault(finding.because_of, []).append(finding.id)
    lines += [f"Because of {cause}: {', '.join(found)}." for cause, found in consequences.items()]
    lines += [f"To know: {each.message} ({each.id})" for each in information]
    if whole:
        reasons: dict[str, list[str]] = {}
        for abstention in diagnosis.abstentions:
            if abstention.applies:
                reasons.setdefault(abstention.reason, []).append(abstention.id)
        lines += [f"Not checked: {', '.join(ids)} ({reason})." for reason, ids in reasons.items()]
    return lines


def told(finding: Finding) -> str:
    """What it is called, and its message."""
    return f"{RULES[finding.id].title} ({finding.id}, {finding.severity}). {finding.message}"


def explain(id: str) -> list[str]:
    """What a finding means, its bound, the source of the bound, and what to do.

    Raises:
        ValueError: there is no finding with this id.
    """
    if id not in RULES:
        raise ValueError(f"There is no finding {id!r}; there are {', '.join(RULES)}.")
    rule = RULES[id]
    return [
        f"{rule.id}: {rule.title}",
        f"phase    {rule.phase}",
        f"needs    {'; '.join(rule.needs)}",
        f"bound    {rule.bound}",
        f"source   {rule.source}",
        f"look at  {rule.picture}",
        f"remedy   {rule.remedy}",
        *([f"explains {', '.join(rule.explains)}"] if rule.explains else []),
    ]
