"""Writes the part of docs/doctor.md that explains the findings one by one."""

import makemore_pl.doctor.diagnosis  # noqa: F401  # registers the rules
from makemore_pl.doctor.rule import RULES, Rule

PHASES = {
    "start": "Before the first step",
    "forward": "The way forward",
    "backward": "The way back",
    "updates": "Steps",
    "batchnorm": "BatchNorm",
    "outcome": "How it went",
}


def handbook() -> str:
    """Markdown, one heading for each id."""
    parts = []
    for phase, title in PHASES.items():
        parts.append(f"## {title}")
        parts += [_entry(rule) for rule in RULES.values() if rule.phase == phase]
    return "\n\n".join(parts) + "\n"


def _entry(rule: Rule) -> str:
    lines = [
        f"### {rule.id}",
        f"{rule.title}.",
        "\n".join(
            [
                f"- It needs {'; '.join(rule.needs)}.",
                f"- Bound: {rule.bound}.",
                f"- Source: {rule.source}.",
                f"- Look at {rule.picture}.",
                *([f"- It explains {', '.join(rule.explains)}."] if rule.explains else []),
            ]
        ),
        f"Remedy: {rule.remedy}",
    ]
    return "\n\n".join(lines)
