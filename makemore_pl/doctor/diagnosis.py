"""From evidence to a diagnosis: every rule, then who explains whom."""

from dataclasses import replace

# isort: off
# importing registers the rules, in the order in which causes come before their consequences
from makemore_pl.doctor import start, forward, backward, updates, normalisation, outcome  # noqa: F401

# isort: on
from makemore_pl.doctor.evidence import Abstain, Evidence, NotApplicable
from makemore_pl.doctor.finding import SEVERITIES, Abstention, Diagnosis, Finding
from makemore_pl.doctor.rule import RULES


def diagnose(evidence: Evidence) -> Diagnosis:
    """Run every rule. Roots come first, at most two of them before the findings that they explain."""
    found: list[Finding] = []
    abstentions: list[Abstention] = []
    checked: list[str] = []
    for rule in RULES.values():
        try:
            findings = rule(evidence)
        except Abstain as reason:
            abstentions.append(Abstention(rule.id, str(reason), applies=not isinstance(reason, NotApplicable)))
            continue
        except Exception as error:  # of numbers that no rule was made for: one rule costs no verdict
            abstentions.append(Abstention(rule.id, f"the rule failed, {type(error).__name__}: {error}"))
            continue
        checked.append(rule.id)
        found += [replace(finding, source=rule.source) for finding in findings]
    return Diagnosis(tuple(_ordered(_explained(found))), tuple(abstentions), tuple(checked))


def _explained(found: list[Finding]) -> list[Finding]:
    """Each with the first finding, in the order of causes, that explains it; information explains nothing."""
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
