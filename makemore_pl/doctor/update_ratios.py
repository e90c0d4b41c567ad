"""How large a step is for a typical weight: summaries of update_data_ratio."""

import math

import numpy as np

from makemore_pl.doctor.evidence import Evidence, median

EARLY = 21
"""Steps of which the largest one is looked for."""
SETTLED = 10
"""Steps that a network that starts with small weights takes large steps relative to them."""


def typical_ratio(evidence: Evidence) -> float:
    """log10 of update over data: over the matrices, the median of their medians at full rate; nan where none is."""
    return median(ratios_at_full_rate(evidence).values())


def livelier_ratios(evidence: Evidence) -> tuple[float, float]:
    """The same of hidden matrices and of the last layer's, each for that third of the run in which it is highest: a
    network that has learned all it can stands still.
    """
    output, livelier = set(evidence.facts.output), [-math.inf, -math.inf]
    for third in range(3):
        ratios = ratios_at_full_rate(evidence, third)
        hidden = [ratio for name, ratio in ratios.items() if name not in output]
        last = [ratio for name, ratio in ratios.items() if name in output]
        for place, each in enumerate((median(hidden or last), median(last or hidden))):
            livelier[place] = max(livelier[place], each if math.isfinite(each) else -math.inf)
    return livelier[0], livelier[1]


def first_steps(evidence: Evidence) -> float:
    """The largest of the first steps, log10 of update over data in the median hidden matrix; nan where none is known.

    Steps after a loss that is not finite don't count.
    """
    measured, output = evidence.of("update_data_ratio"), set(evidence.facts.output)
    hidden = {name: each for name, each in measured.items() if name not in output} or measured
    losses = evidence.losses()
    bad = losses.steps[~np.isfinite(losses.values)]
    end = min(EARLY, bad[0] if len(bad) else EARLY)
    steps = sorted({int(step) for each in hidden.values() for step in each.steps if step < end})
    found = [median(each.at(np.array([step]))[0] for each in hidden.values() if step in each.steps) for step in steps]
    return max((each for each in found if math.isfinite(each)), default=math.nan)


def last_step_before(evidence: Evidence) -> float:
    """log10 of update over data in the median matrix, in the last step measured before a loss that is not finite; nan
    where that is one of the first.
    """
    losses = evidence.losses()
    end = losses.steps[~np.isfinite(losses.values)][0]
    measured = evidence.of("update_data_ratio").values()
    before = [each.values[(each.steps < end) & (each.steps >= SETTLED)] for each in measured]
    return median(each[-1] for each in before if len(each))


def smallest_first_step(evidence: Evidence) -> float:
    """log10 of update over data of that hidden matrix whose largest early step is the smallest; nan without one."""
    aside = {*evidence.facts.output, *evidence.facts.vocabulary}
    hidden = [each for name, each in evidence.of("update_data_ratio").items() if name not in aside]
    largest = [max(each.values[each.steps < EARLY], default=math.nan) for each in hidden]
    return float(min(largest, default=math.nan))


def ratios_at_full_rate(evidence: Evidence, third: int | None = None) -> dict[str, float]:
    """Matrix -> median of its log10 of update over data at full rate; of embeddings only where nothing else moves.

    Args:
        third: of the run, 0 to 2; None for all of it.
    """
    facts = evidence.facts
    measured = evidence.need("update_data_ratio")
    chosen = {name: each for name, each in measured.items() if name not in facts.vocabulary} or measured
    found = {}
    for name, each in chosen.items():
        at = evidence.full_rate(each)
        at = late if (late := at & (each.steps >= SETTLED)).any() else at
        values = each.values[at]
        found[name] = median(values if third is None else np.array_split(values, 3)[third])
    return found
