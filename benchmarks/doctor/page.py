"""Counts as Markdown."""

from benchmarks.doctor.configurations import FAULTS
from benchmarks.doctor.counting import Counts
from benchmarks.doctor.module_faults import MODULE_FAULTS
from benchmarks.tables import markdown

HEADER = ["id", "runs with it", "recall", "said wrongly", "precision", "delay, steps"]
GOALS = [
    ("macro recall", "recall", 0.95),
    ("precision", "precision", 0.95),
    ("root named first", "root_first", 0.9),
]


def summary(counts: Counts) -> list[list[str]]:
    """Beside what was asked for."""
    rows = [[name, _number(getattr(counts, attribute)), f"{goal} or more"] for name, attribute, goal in GOALS]
    alarms = f"{counts.alarms} of {counts.healthy} healthy runs"
    return [*rows, ["healthy runs with an alarm", alarms, "1 % or less"]]


def rows(counts: Counts) -> list[list[str]]:
    return [
        [
            id,
            str(row.hits + row.misses),
            _number(row.recall),
            str(row.false),
            _number(row.precision),
            "–" if row.delay is None else f"{row.delay:.0f}",
        ]
        for id, row in counts.rows.items()
    ]


def sections(family: str, half: str, counts: Counts) -> list[str]:
    """Everything of one family in one half."""
    found = [
        f"## {family.capitalize()}s, {half} half",
        f"{counts.hurting} cases with faults that hurt, {len(counts.harmless)} with faults of which no harm was "
        f"measured, {counts.healthy} healthy runs.",
        markdown(["", "measured", "goal"], summary(counts)),
        markdown(HEADER, rows(counts)),
        "What came first:",
        markdown(["should be said", "is said first, with the number of runs"], _confusion(counts)),
    ]
    lists = {
        "Missed": counts.misses,
        "Said wrongly": counts.false,
        "No harm measured, not counted": counts.harmless,
        "Without a fault, but learned nothing, not counted": counts.unlearned,
    }
    for title, lines in lists.items():
        if lines:
            found += [f"### {title}", "\n".join(f"- {line}" for line in lines)]
    return found


def _confusion(counts: Counts) -> list[list[str]]:
    return [
        [wanted, ", ".join(f"{id} {times}" for id, times in said.most_common())]
        for wanted, said in sorted(counts.confusion.items())
    ]


def faults() -> str:
    """Which ids name which fault, and how strong it is drawn."""
    body = [
        [family, fault.name, ", ".join(fault.ids), _strength(fault.weakest, fault.strongest)]
        for family, table in (("configuration", FAULTS), ("module", MODULE_FAULTS))
        for fault in table
    ]
    return markdown(["family", "fault", "ids that name it", "strength"], body)


def _strength(weakest: float, strongest: float) -> str:
    return "–" if weakest == strongest else f"{weakest:g} to {strongest:g}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
