"""From evidence to a diagnosis: run every rule, then find out which finding explains which."""

from dataclasses import replace

# isort: off
# Importing a module registers its rules. The order is that of causes before consequences.
from makemore_pl.doctor import start, forward, backward, updates, normalisation, outcome, regularization  # noqa: F401

# isort: on
from makemore_pl.doctor.evidence import Abstain, Evidence, NotApplicable
from makemore_pl.doctor.finding import SEVERITIES, Abstention, Diagnosis, Finding
from makemore_pl.doctor.rule import RULES, Rule

CAUSES = ("not_finite", "overregularized")
"""Of the outcome's findings those that may have a cause of their own."""
ANY_PART = (
    "constant_input", "input_scale", "target_scale", "symmetric_units", "linear_network", "activation_before_loss",
    "softmax_before_cross_entropy", "dead_units", "gradients_accumulate", "examples_mixed", "frozen_parameters",
    "clipping", "batchnorm_eval", "bias_before_batchnorm", "batchnorm_small_batch", "batchnorm_lag", "batchnorm_noise",
    "not_finite",
)  # fmt: skip
"""Rules that can judge any part of a run. The others need its start."""


def diagnose(evidence: Evidence) -> Diagnosis:
    """Run every rule. In the result, findings that no other one explains come first."""
    found: list[Finding] = []
    abstentions: list[Abstention] = []
    checked: list[str] = []
    for rule in RULES.values():
        try:
            findings = _judged(rule, evidence)
        except Abstain as reason:
            abstentions.append(Abstention(rule.id, str(reason), applies=not isinstance(reason, NotApplicable)))
            continue
        except Exception as error:  # numbers that the rule was not made for must not cost the whole verdict
            abstentions.append(Abstention(rule.id, f"the rule failed, {type(error).__name__}: {error}"))
            continue
        checked.append(rule.id)
        found += [replace(finding, source=rule.source) for finding in findings]
    return Diagnosis(
        tuple(_ordered(_explained(found))), tuple(abstentions), tuple(checked), unseen=evidence.facts.unseen
    )


def _judged(rule: Rule, evidence: Evidence) -> list[Finding]:
    """What the rule finds. Raises Abstain also where it needs a start that was not seen."""
    unseen = 0 if rule.id in ANY_PART else evidence.facts.unseen
    try:
        findings = rule(evidence)
    except NotApplicable:
        raise
    except Exception:
        if not unseen:
            raise
    if unseen:
        raise Abstain(f"the start was not seen: the run was resumed after {unseen:,} steps that nothing is known of")
    return findings


def _explained(found: list[Finding]) -> list[Finding]:
    """Each with the first finding, in the order of causes, that explains it, roots before others; information explains
    nothing.
    """
    because = {
        each.id: [cause.id for cause in found if cause.severity != "info" and _explains(cause.id, each.id)]
        for each in found
    }
    roots = [id for id, causes in because.items() if not causes]
    first = {id: next((each for each in causes if each in roots), None) for id, causes in because.items()}
    return [replace(each, because_of=first[each.id] or next(iter(because[each.id]), None)) for each in found]


def _explains(cause: str, symptom: str) -> bool:
    """What only the losses show follows from whatever is wrong elsewhere."""
    shown = RULES[symptom].phase == "outcome" and symptom not in CAUSES and RULES[cause].phase != "outcome"
    return shown or symptom in RULES[cause].explains


def _ordered(found: list[Finding]) -> list[Finding]:
    order = list(RULES)

    def place(finding: Finding) -> tuple[int, int, int]:
        rank = 2 if finding.severity == "info" else 1 if finding.because_of else 0
        return rank, -SEVERITIES.index(finding.severity) if rank == 1 else 0, order.index(finding.id)

    return sorted(found, key=place)
