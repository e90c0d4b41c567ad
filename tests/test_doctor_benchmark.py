"""The pure parts of scripts/benchmark.py --doctor: the draw of cases, the test of harm, the counting."""

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.doctor import counting, page
from benchmarks.doctor.case import Case, Outcome, Said, Verdict
from benchmarks.doctor.configurations import BY_NAME as CONFIGURATION_FAULTS
from benchmarks.doctor.configurations import configurations, spoiled
from benchmarks.doctor.harm import permutation_p
from benchmarks.doctor.module_faults import MODULE_FAULTS
from benchmarks.doctor.modules import SHELVES, modules, recipes, train
from benchmarks.doctor.records import Result, measure, read, result
from benchmarks.doctor.shelf import chosen
from makemore_pl.doctor.diagnosis import RULES


@pytest.mark.parametrize(
    ("worse", "better", "p"),
    [
        ([6, 7, 8, 9, 10], [1, 2, 3, 4, 5], 1 / 252),  # one of the choices of 5 out of 10 has the highest sum of ranks
        ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10], 1),
        ([3, 4], [1, 2], 1 / 6),
        ([2, 4], [1, 3], 2 / 6),  # as high or higher: {2, 4} with sum 6 and {3, 4} with 7
        ([1, 1, 1], [1, 1, 1], 1),
        ([float("nan"), float("inf")], [1, 2], 1 / 6),
    ],
)
def test_permutation_p_is_exact(worse: list[float], better: list[float], p: float) -> None:
    assert permutation_p(worse, better) == pytest.approx(p)


@pytest.mark.parametrize("draw", [configurations, recipes])
def test_cases_are_the_same_in_every_draw_and_others_in_the_other_half(draw: object) -> None:
    assert callable(draw)
    assert str(draw("tuning")) == str(draw("tuning"))
    trainings = {
        half: {str(each[1] if isinstance(each, tuple) else each.run) for each in draw(half)} for half in SHELVES
    }
    assert not trainings["tuning"] & trainings["reporting"]


def test_halves_share_no_family_no_data_and_no_seed() -> None:
    tuning, reporting = SHELVES["tuning"], SHELVES["reporting"]
    assert not set(tuning.data) & set(reporting.data)
    assert not set(tuning.data.values()) & set(reporting.data.values())
    assert not set(modules("tuning")[0].seeds) & set(modules("reporting")[0].seeds)


@pytest.mark.parametrize("half", SHELVES)
def test_every_fault_is_drawn_and_every_faulty_case_has_its_twin(half: str) -> None:
    cases = chosen(half, None, None, quick=False)
    names = {case.key for case in cases}
    assert len(names) == len(cases)
    for case in cases:
        assert (case.half, case.family, case.twin) in names if case.roots else case.twin is None
        assert all(ids <= set(RULES) for ids in case.roots)
    drawn = {each for case in cases for each in case.faults}
    binary = {"sigmoid twice"} if half == "tuning" else set()  # which has no such task
    assert drawn | binary == {*CONFIGURATION_FAULTS, *(fault.name for fault in MODULE_FAULTS)}


def test_no_id_of_the_reported_modules_is_decided_by_fewer_than_three_families() -> None:
    families: dict[str, set[str]] = {fault.ids[0]: set() for fault in MODULE_FAULTS}
    ids = {fault.name: fault.ids[0] for fault in MODULE_FAULTS}
    for _, recipe, _ in recipes("reporting"):
        for name, _ in recipe.faults:
            families[ids[name]].add(recipe.family)
    assert {id: len(each) for id, each in families.items() if len(each) < 3} == {}


def test_a_case_brings_its_twin_along_and_an_unknown_name_is_refused() -> None:
    found = chosen("tuning", "module", ["softmax twice"], quick=False)
    assert {case.twin for case in found if case.roots} == {case.name for case in found if not case.roots}
    with pytest.raises(ValueError, match="no case has sofmax or maxsoft in its name"):
        chosen("tuning", None, ["sofmax", "maxsoft"], quick=False)


def test_strengths_lie_within_their_bounds() -> None:
    bounds = {fault.name: (fault.weakest, fault.strongest) for fault in MODULE_FAULTS}
    for _, recipe, _ in recipes("tuning"):
        for name, strength in recipe.faults:
            lowest, highest = bounds[name]
            assert 0.99 * lowest <= strength <= 1.01 * highest


def test_changes_replace_overrides_and_scale_the_rate() -> None:
    healthy = ("data.batch_size=32", "optim.lr=0.1", "model.gain=1")
    assert spoiled(healthy, ["/4", "model.gain=3"]) == ("data.batch_size=32", "optim.lr=0.025", "model.gain=3")
    assert spoiled(healthy, ["data.batch_size=3.7", "*10"]) == ("optim.lr=1", "model.gain=1", "data.batch_size=4")


def fake(name: str, faults: tuple[str, ...] = (), twin: str | None = None) -> Case:
    roots = tuple(frozenset(CONFIGURATION_FAULTS[fault].ids) for fault in faults)
    return Case(name, "configuration", "tuning", outcome, faults, roots, twin)


def outcome(seed: int, watched: bool) -> Outcome:
    said = Verdict((Said("saturation", "warning"),), {"saturation": 40})
    return Outcome(float(seed), 10.0, said if watched else None)


def results(*said: tuple[Said, ...]) -> list[Result]:
    """A healthy case, one with a gain too high that hurts, and one with a gain too high that does not."""
    healthy, hurting = fake("a"), fake("a, ill", ("gain too high",), "a")
    low, high = [1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]
    verdicts = [{0: Verdict(each, {found.id: 40 for found in each})} for each in said]
    return [
        Result(healthy, low, [], 10.0, verdicts[0]),
        Result(hurting, high, low, 10.0, verdicts[1]),
        Result(fake("a, mild", ("gain too high",), "a"), low, low, 10.0, verdicts[2]),
    ]


def test_counting_of_hits_misses_and_false_alarms() -> None:
    saturated, fast = Said("saturation", "warning"), Said("update_too_large", "critical")
    explained, info = Said("dead_units", "warning", "saturation"), Said("clipping", "info")

    right = counting.count(results((info,), (saturated, explained), (saturated,)))
    assert (right.recall, right.precision, right.root_first, right.alarms, right.healthy) == (1, 1, 1, 0, 1)
    assert right.rows["saturation"].delay == 40
    assert (right.hurting, right.harmless) == (1, ["a, mild (p = 0.59; named in 1 of 1)"])

    second = counting.count(results((fast,), (fast, saturated), (fast,)))
    assert (second.recall, second.precision, second.root_first) == (1, 0.25, 0)  # one right of four
    assert (second.alarms, second.rows["update_too_large"].false) == (1, 3)
    assert second.confusion["saturation"] == {"update_too_large": 1}

    missed = counting.count(results((), (), ()))
    assert (missed.recall, missed.precision, missed.root_first) == (0, None, 0)
    assert missed.misses == ["saturation missed, nothing said: a, ill, seed 0"]


def test_what_learned_nothing_is_not_healthy_and_harm_needs_every_seed() -> None:
    alarm = (Said("no_learning", "critical"),)
    healthy, hurting, mild = results(alarm, (), ())
    stuck = Result(healthy.case, [9.5] * 5, [], 10.0, healthy.verdicts)
    early = Result(hurting.case, hurting.losses[:4], hurting.mended, 10.0, hurting.verdicts)
    counts = counting.count([stuck, early, mild])
    assert (counts.healthy, counts.alarms, counts.hurting, counts.unlearned) == (0, 0, 0, ["a"])


def test_recall_of_a_doctor_that_names_the_cause_among_its_consequences_is_that_of_its_id() -> None:
    rows = page.rows(counting.count(results((), (Said("saturation", "warning", "input_scale"),), ())))
    assert rows == [["saturation", "1", "1.00", "0", "1.00", "40"]]


def test_records_go_on_where_they_stopped(tmp_path) -> None:
    path, lines = tmp_path / "records.jsonl", list[str]()
    cases = [fake("a"), fake("a, ill", ("gain too high",), "a")]
    first = measure(cases, path, lines.append)
    assert len(lines) == 10
    assert [len(each.verdicts) for each in first] == [3, 2]
    path.write_text(path.read_text()[:-40])  # as a kill leaves it
    assert measure(cases, path, lines.append) == first
    assert len(lines) == 11


def test_losses_outlive_another_doctor_and_its_verdicts_do_not(tmp_path) -> None:
    path, case = tmp_path / "records.jsonl", fake("a")
    record = {"sources": "then", "case": case.key, "seed": 0, "outcome": asdict(outcome(0, True))}
    path.write_text(json.dumps(record) + "\n")
    now, then = read(path, "now"), read(path, "then")
    assert result(case, now).losses == result(case, then).losses == [0.0]
    assert (now.verdicts, list(then.verdicts[case.key])) == ({}, [0])


def test_a_module_is_trained_and_judged() -> None:
    """The doctor changes nothing; a softmax too many is named."""
    sound = next(recipe for _, recipe, _ in recipes("tuning") if recipe.family == "mlp on clouds")
    recipe = replace(sound, faults=(("softmax twice", 1.7),))
    watched, alone = train("tuning", recipe, 0, True), train("tuning", recipe, 0, False)
    assert watched.loss == alone.loss
    assert watched.verdict is not None
    assert "softmax_before_cross_entropy" in watched.verdict.roots
