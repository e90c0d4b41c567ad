"""From evidence to a diagnosis: run every rule, then find out which finding explains which."""

from dataclasses import replace

# isort: off
# Importing a module registers its rules. The order is that of causes before consequences.
from makemore_pl.doctor import start, forward, backward, updates, normalisation, outcome  # noqa: F401

# isort: on
from makemore_pl.doctor.evidence import Abstain, Evidence
from makemore_pl.doctor.finding import SEVERITIES, Abstention, Diagnosis, Finding
from makemore_pl.doctor.rule import RULES


def diagnose(evidence: Evidence) -> Diagnosis:
    """Run every rule. In the result, findings that no other one explains come first."""
    found: list[Finding] = []
    abstentions: list[Abstention] = []
    checked: list[str] = []
    for rule in RULES.values():
        try:
            findings = rule(evidence)
        except Abstain as reason:
            abstentions.append(Abstention(rule.id, str(reason)))
            continue
        except Exception as error:  # numbers that the rule was not made for must not cost the whole verdict
            abstentions.append(Abstention(rule.id, f"the rule failed, {type(error).__name__}: {error}"))
            continue
        checked.append(rule.id)
        found += [replace(finding, source=rule.source) for finding in findings]
    return Diagnosis(tuple(_ordered(_explained(found))), tuple(abstentions), tuple(checked))


def _explained(found: list[Finding]) -> list[Finding]:
    """Set because_of to the first finding, in the order of causes, that explains each one. Infos explain nothing."""
    causes = [each for each in found if each.severity != "info"]
    explained = []
    for finding in found:
        because = [each.id for each in causes if finding.id in RULES[each.id].explains]
        explained.append(replace(finding, because_of=because[0] if because else None))
    return explained


def _ordered(found: list[Finding]) -> list[Finding]:
    order = list(RULES)

    def place(finding: Finding) -> tuple[int, int, int]:
        rank = 2 if finding.severity == "info" else 1 if finding.because_of else 0
        return rank, -SEVERITIES.index(finding.severity) if rank == 1 else 0, order.index(finding.id)

    return sorted(found, key=place)
