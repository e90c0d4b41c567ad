"""The doctor and other tools on the same trainings: who names what, and who alarms without need."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.doctor.case import SHIFT
from benchmarks.doctor.counting import main_id, p_of_harm
from benchmarks.doctor.fitting import fit
from benchmarks.doctor.harm import LEVEL
from benchmarks.doctor.modules import SHELVES, recipes
from benchmarks.doctor.records import Result
from benchmarks.doctor.rivals import MEANINGS, RIVALS, installed
from benchmarks.tables import markdown
from makemore_pl.doctor.rule import RULES

OURS = "makemore_pl"


def measure(half: str, names: Sequence[str], path: Path, say: Callable[[str], None]) -> dict[str, dict[str, list[str]]]:
    """Case -> tool -> words, from the first seed; what `path` holds is not trained again."""
    rivals = installed()
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known: dict[str, dict[str, list[str]]] = {}
    for line in lines:
        record = json.loads(line)
        known[record["case"]] = record["words"]
    shelf, first = SHELVES[half], SHIFT[half]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for name, recipe, _ in recipes(half):
            if name in known or name not in names:
                continue
            beside = [each() for each in rivals]
            fit(recipe, shelf.make, shelf.data[recipe.family], first, beside)
            known[name] = {each.name: each.words() for each in beside}
            failures = {each.name: each.failure for each in beside if each.failure}
            file.write(json.dumps({"case": name, "words": known[name], "failures": failures}) + "\n")
            file.flush()
            say(f"{name}: {known[name]} {failures or ''}")
    return known


def table(results: Sequence[Result], words: dict[str, dict[str, list[str]]]) -> list[str]:
    """A summary by tool, and recall by id and tool."""
    tools = [OURS, *(each.name for each in RIVALS if any(each.name in said for said in words.values()))]
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    alarms: dict[str, list[bool]] = defaultdict(list)
    right: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        case, first = result.case, result.case.seeds[0]
        p = p_of_harm(result)
        if case.name not in words or first not in result.verdicts or (case.roots and (p is None or p >= LEVEL)):
            continue
        follows = frozenset().union(*case.roots, *(RULES[id].explains for ids in case.roots for id in ids))
        for tool in tools:
            said = _said(tool, result, words[case.name])
            right[tool] += [bool(ids & follows) for ids in said]
            if not case.roots:
                alarms[tool].append(bool(said))
            for ids, fault in zip(case.roots, case.faults, strict=True):
                hits[main_id(case, fault)][tool].append(any(ids & each for each in said))
    recalls = {id: [sum(each[tool]) / len(each[tool]) for tool in tools] for id, each in sorted(hits.items())}
    summary = []
    for place, tool in enumerate(tools):
        macro = sum(each[place] for each in recalls.values()) / max(1, len(recalls))
        precision = f"{sum(right[tool]) / len(right[tool]):.2f}" if right[tool] else "–"
        summary.append([tool, f"{macro:.2f}", precision, f"{sum(alarms[tool])} of {len(alarms[tool])}"])
    return [
        markdown(["", "macro recall", "right of what is said", "healthy runs with an alarm"], summary),
        markdown(["recall", *tools], [[id, *(f"{each:.2f}" for each in row)] for id, row in recalls.items()]),
    ]


def _said(tool: str, result: Result, words: dict[str, list[str]]) -> list[frozenset[str]]:
    """Of one tool in the first seed."""
    if tool == OURS:
        return [frozenset({each.id}) for each in result.verdicts[result.case.seeds[0]].said if each.is_root]
    return [MEANINGS[tool][word] for word in words.get(tool, [])]
