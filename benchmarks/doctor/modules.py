"""Modules that are not ours, healthy and faulty, drawn at random."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.doctor import reporting_modules, tuning_modules
from benchmarks.doctor.case import DRAW, Case, Outcome
from benchmarks.doctor.fitting import Data, fit, harm
from benchmarks.doctor.judging import judge
from benchmarks.doctor.learner import Learner
from benchmarks.doctor.module_faults import MODULE_FAULTS, spoiled
from benchmarks.doctor.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Shelf:
    """The modules of a half."""

    make: Callable[[Recipe], Learner]
    data: dict[str, Callable[[int, int], Data]]
    """By family."""
    draw: Callable[[str, random.Random], Recipe]


SHELVES = {
    "tuning": Shelf(tuning_modules.make, tuning_modules.DATA, tuning_modules.draw_recipe),
    "reporting": Shelf(reporting_modules.make, reporting_modules.DATA, reporting_modules.draw_recipe),
}


HEALTHY, EACH, PAIRS = {"tuning": 22, "reporting": 45}, {"tuning": 2, "reporting": 3}, {"tuning": 6, "reporting": 8}
"""Recipes without a fault, recipes for each fault, and pairs of faults."""


def recipes(half: str) -> list[tuple[str, Recipe, str | None]]:
    """Name, recipe and mended twin of all that is trained in a half."""
    draw = random.Random(f"modules, {DRAW[half]}")
    families = list(SHELVES[half].data)
    sound = [SHELVES[half].draw(families[place % len(families)], draw) for place in range(HEALTHY[half])]
    names = [f"module {place}, {recipe.family}" for place, recipe in enumerate(sound)]
    found: list[tuple[str, Recipe, str | None]] = [
        (name, recipe, None) for name, recipe in zip(names, sound, strict=True)
    ]
    chosen = [([fault], EACH[half]) for fault in MODULE_FAULTS]
    paired = [fault for fault in MODULE_FAULTS if fault.pairs]
    while len(chosen) < len(MODULE_FAULTS) + PAIRS[half]:
        faults = draw.sample(paired, 2)
        if any(all(fault.possible(recipe) for fault in faults) for recipe in sound):
            chosen.append((faults, 1))
    used = Counter[str]()
    for faults, count in chosen:  # in the families that have the fewest so far
        fitting = [place for place, recipe in enumerate(sound) if all(fault.possible(recipe) for fault in faults)]
        fitting.sort(key=lambda place: (used[sound[place].family], draw.random()))
        if half == "reporting":  # one of each family, still in this order
            fitting = [*{sound[place].family: place for place in reversed(fitting)}.values()][::-1]
        for place in fitting[:count]:
            used[sound[place].family] += 1
            recipe = spoiled(sound[place], faults, draw)
            title = " and ".join(f"{name} {strength:g}" for name, strength in recipe.faults)
            found.append((f"{names[place]}, {title}", recipe, names[place]))
    return found


def modules(half: str) -> list[Case]:
    """Healthy modules of a half, and each fault and some pairs in some of them."""
    ids = {fault.name: frozenset(fault.ids) for fault in MODULE_FAULTS}
    return [
        Case(
            name,
            "module",
            half,
            partial(train, half, recipe),
            tuple(fault for fault, _ in recipe.faults),
            tuple(ids[fault] for fault, _ in recipe.faults),
            twin,
        )
        for name, recipe, twin in recipes(half)
    ]


def train(half: str, recipe: Recipe, seed: int, watched: bool) -> Outcome:
    """One short training with nothing but the doctor, or with nothing."""
    from makemore_pl.diagnostics import Doctor

    shelf, doctor = SHELVES[half], Doctor(announce=False)
    module = fit(recipe, shelf.make, shelf.data[recipe.family], seed, [doctor] if watched else [])
    loss, guess = harm(recipe, module, shelf.data[recipe.family], seed)
    return Outcome(loss, guess, judge(doctor.evidence) if watched and doctor.evidence else None)
