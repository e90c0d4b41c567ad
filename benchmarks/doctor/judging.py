"""What the doctor says of a training, and from which step on."""

from benchmarks.doctor.case import Said, Verdict
from makemore_pl.doctor.diagnosis import diagnose
from makemore_pl.doctor.evidence import Evidence

CUTS = 12


def judge(evidence: Evidence) -> Verdict:
    """The final verdict, and the first of a dozen steps at which the evidence so far was enough for each finding."""
    said = tuple(Said(each.id, each.severity, each.because_of) for each in diagnose(evidence).findings)
    found_at: dict[str, int] = {}
    steps = sorted({step for each in evidence.series.values() for step in each})
    for step in steps[:: max(1, len(steps) // CUTS)]:
        early = {tag: {at: x for at, x in each.items() if at <= step} for tag, each in evidence.series.items()}
        known = Evidence({tag: each for tag, each in early.items() if each}, evidence.facts, final=False)
        for finding in diagnose(known).findings:
            found_at.setdefault(finding.id, step)
    return Verdict(said, {each.id: found_at.get(each.id, evidence.last_step) for each in said})
