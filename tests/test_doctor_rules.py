"""Each rule on evidence made by hand: it must fire, and on the healthy twin it must stay silent."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from makemore_pl.activations import ACTIVATIONS
from makemore_pl.config.choices import OPTIMIZERS
from makemore_pl.doctor import prescribing
from makemore_pl.doctor.diagnosis import diagnose
from makemore_pl.doctor.evidence import Evidence
from makemore_pl.doctor.facts import Facts, OptimizerFacts, Scale
from makemore_pl.doctor.loss_graph import read_loss
from makemore_pl.doctor.rule import RULES
from makemore_pl.doctor.target_statistics import TargetStatistics

Series = dict[str, dict[int, float | None]]
STEPS = range(0, 1000, 50)


def flat(value: float) -> dict[int, float | None]:
    return dict.fromkeys(STEPS, value)


def falling(start: float, end: float) -> dict[int, float | None]:
    return {step: end + (start - end) * math.exp(-step / 100) for step in STEPS}


def rising(start: float, end: float) -> dict[int, float | None]:
    return {step: start + (end - start) * step / STEPS[-1] for step in STEPS}


HEALTHY = Facts(
    inputs_vary=True,
    normalises=True,
    layers=("a", "b"),
    matrices=("a.weight", "b.weight"),
    bounded=("a", "b"),
    loss="cross_entropy",
    classes=27,
    loss_scale=1.0,
    constant_guess=2.8,
    inputs=Scale(0.0, 1.0, 3.0, -3.0),
    targets=Scale(0.0, 1.0, 3.0, -3.0),
    batch_size=32,
    optimizers=(OptimizerFacts("SGD", 0.1),),
    values_per_channel={"a": 32},
    rectified=(),
    before_normalised=False,
    targets_vary=True,
    clip_value=0.0,
    linear_pairs=(),
    copies={},
    bias_before_batchnorm=(),
    not_optimized=(),
    unreached=(),
    accumulates=False,
    examples_mixed="",
    asleep=(),
    dropout=0.0,
)
NUMBERS: Series = {
    "train/loss": falling(3.3, 2.0),
    "val/loss": {499: 2.2, 749: 2.1, 999: 2.05},
    "lr": flat(0.1),
    **{f"{quantity}/{layer}": flat(value) for layer in "ab" for quantity, value in {
        "saturation": 0.1, "activation_std": 0.7, "preactivation_std": 1.2, "dead_units": 0.0, "stuck_units": 0.0,
        "activation_grad_std": 1e-3, "batchnorm_mean_lag": 1.0, "batchnorm_var_lag": 1.0,
    }.items()},
    **{f"update_data_ratio/{layer}.weight": flat(-2.5) for layer in "ab"},
    "grad_norm/before_clipping": flat(1.0),
    "not_finite/gradients": flat(0.0),
    "batchnorm_gap/loss": flat(0.001),
}  # fmt: skip

FAULTS: dict[str, tuple[str, dict[str, Any], Series]] = {
    # name: (id, facts that differ, numbers that differ)
    "no variation": ("constant_input", {"inputs": Scale(1.0, 0.0, 1.0, 1.0), "inputs_vary": False}, {}),
    "pixels as bytes": ("input_scale", {"inputs": Scale(128.0, 60.0, 255.0)}, {}),
    "tiny inputs": ("input_scale", {"inputs": Scale(0.0, 1e-3, 4e-3)}, {}),
    "far from zero": ("input_scale", {"inputs": Scale(9.0, 0.1, 9.5)}, {}),
    "one wild feature": ("input_scale", {"inputs": Scale(0.0, 5.0, 90.0, feature_spread=500.0)}, {}),
    "prices": ("target_scale", {"loss": "mse", "targets": Scale(2e5, 5e4, 4e5)}, {}),
    "bytes as probabilities": ("target_scale", {"loss": "bce", "targets": Scale(100.0, 50.0, 255.0)}, {}),
    "copies": ("symmetric_units", {"copies": {"a.weight": 1.0}}, {}),
    "hockey stick": ("confident_start", {}, {"train/loss": falling(22.0, 2.5)}),
    "no tanh": ("linear_network", {"linear_pairs": (("a", "b"),)}, {}),
    "softmax twice": ("softmax_before_cross_entropy", {"activation_before_loss": "softmax"}, {}),
    "relu on logits": ("activation_before_loss", {"activation_before_loss": "relu"}, {}),
    "sigmoid and wide targets": (
        "activation_before_loss",
        {"loss": "mse", "activation_before_loss": "sigmoid", "outside": 0.5},
        {},
    ),
    "likelihood without log": ("activation_before_loss", {"loss": "nll", "activation_before_loss": "softmax"}, {}),
    "gain 3, first layer": ("saturation", {}, {"saturation/a": flat(0.46)}),
    "gain 3, later layer": ("saturation", {}, {"saturation/b": flat(0.40)}),
    "growing": ("exploding_activations", {"bounded": ()}, {"activation_std/b": flat(100.0)}),
    "gain 0.5": ("vanishing_activations", {}, {"preactivation_std/b": flat(0.024)}),
    "dead tanh": ("dead_units", {}, {"dead_units/a": rising(0.0, 0.9)}),
    "dead relu": ("dead_units", {"rectified": ("a",), "bounded": ()}, {"stuck_units/a": flat(0.8)}),
    "never zeroed": ("gradients_accumulate", {"accumulates": True}, {}),
    "view for permute": ("examples_mixed", {"examples_mixed": "net"}, {}),
    "detached": ("no_gradient", {"unreached": ("a.weight",)}, {}),
    "fading back": ("vanishing_gradients", {}, {"activation_grad_std/a": flat(1e-6)}),
    "growing back": ("exploding_gradients", {}, {"activation_grad_std/a": flat(1.0)}),
    "one jump": ("exploding_gradients", {}, {"grad_norm/before_clipping": flat(1.0) | {500: 5e3}}),
    "left out": ("frozen_parameters", {"not_optimized": ("a.weight",)}, {}),
    "lr 500": (
        "update_too_large",
        {},
        {"train/loss": rising(3.3, 700.0), **{f"update_data_ratio/{each}.weight": flat(-0.2) for each in "ab"}},
    ),
    "lr 0.001": (
        "update_too_small",
        {},
        {"train/loss": falling(3.3, 3.2), **{f"update_data_ratio/{each}.weight": flat(-4.6) for each in "ab"}},
    ),
    "clipped": (
        "clipping",
        {"clip_value": 0.1},
        {"grad_norm/before_clipping": flat(1.0), "grad_norm/after_clipping": flat(0.1)},
    ),
    "left in eval": ("batchnorm_eval", {"asleep": ("a",)}, {}),
    "two examples": ("batchnorm_small_batch", {"values_per_channel": {"a": 2}}, {}),
    "long memory": (
        "batchnorm_lag",
        {},
        {"batchnorm_mean_lag/a": flat(7.0), "batchnorm_gap/loss": flat(0.5)},
    ),
    "short memory": ("batchnorm_noise", {}, {"batchnorm_gap/loss": flat(0.1)}),
    "nan": ("not_finite", {}, {"train/loss": falling(3.3, 2.0) | {500: None}}),
    "inf in a gradient": ("not_finite", {}, {"not_finite/gradients": flat(0.0) | {500: 3.0}}),
    "up": (
        "diverged",
        {},
        {"train/loss": rising(3.3, 9.0), "update_data_ratio/a.weight": {}, "update_data_ratio/b.weight": {}},
    ),
    "spike": ("loss_spike", {}, {"train/loss": falling(3.3, 2.0) | {700: 30.0}}),
    "at the level of a guess": ("no_learning", {}, {"train/loss": falling(3.3, 2.8), "val/loss": flat(2.8)}),
    "by heart": ("no_learning", {"validated_within": 3}, {"val/loss": {499: 2.85, 749: 2.9, 999: 2.95}}),
    "other data": ("train_val_mismatch", {}, {"val/loss": {499: 4.0, 749: 4.2, 999: 4.1}}),
    "up again": ("overfitting", {}, {"val/loss": {249: 2.1, 499: 2.3, 749: 2.5, 999: 2.7}}),
    "much dropout": ("overregularized", {"dropout": 0.85}, {}),
    "decay": (
        "overregularized",
        {"optimizers": (OptimizerFacts("SGD", 0.1, 0.0, 0.3),)},
        {"preactivation_std/a": falling(1.2, 0.1)},
    ),
}
INFORMATION: dict[str, tuple[str, dict[str, Any]]] = {
    "bias": ("bias_before_batchnorm", {"bias_before_batchnorm": ("a",)}),
    "frozen on purpose": ("frozen_parameters", {"frozen": ("a.weight",)}),
    "never used": ("no_gradient", {"unused": ("a.weight",)}),
    "eval on purpose": ("batchnorm_eval", {"asleep_on_purpose": ("a",)}),
}


def ids(facts: dict[str, Any], numbers: Series) -> dict[str, str]:
    diagnosis = diagnose(Evidence(NUMBERS | numbers, replace(HEALTHY, **facts)))
    return {finding.id: finding.severity for finding in diagnosis.findings}


def test_nothing_is_found_on_a_healthy_run() -> None:
    assert not ids({}, {})


@pytest.mark.parametrize("name", FAULTS)
def test_the_rule_fires_and_is_the_first_root(name: str) -> None:
    id, facts, numbers = FAULTS[name]
    diagnosis = diagnose(Evidence(NUMBERS | numbers, replace(HEALTHY, **facts)))
    assert diagnosis.roots[0].id == id
    assert diagnosis.findings[0] == diagnosis.roots[0]


@pytest.mark.parametrize("name", INFORMATION)
def test_what_may_be_meant_is_information(name: str) -> None:
    id, facts = INFORMATION[name]
    assert ids(facts, {}) == {id: "info"}


def test_every_rule_has_a_case() -> None:
    assert {id for id, *_ in FAULTS.values()} | {id for id, *_ in INFORMATION.values()} == set(RULES)


SILENT: dict[str, tuple[dict[str, Any], Series]] = {
    "images from 0 to 1": ({"inputs": Scale(0.13, 0.3, 1.0)}, {}),
    "one-hot inputs": ({"inputs": Scale(0.001, 0.03, 1.0)}, {}),
    "bytes before a normalisation": ({"inputs": Scale(128.0, 60.0, 255.0), "inputs_normalised": True}, {}),
    "a warm-up and a drop of the rate": (
        {},
        {
            "lr": {step: 0.1 * (step + 1) / 101 if step < 100 else 0.1 if step < 500 else 0.001 for step in STEPS},
            **{
                f"update_data_ratio/{each}.weight": {
                    step: -4.0 if step < 100 else -2.5 if step < 500 else -4.5 for step in STEPS
                }
                for each in "ab"
            },
        },
    ),
    "learned all there is": (
        {},
        {"train/loss": falling(3.3, 0.01), "val/loss": flat(0.1), "update_data_ratio/a.weight": falling(-2.5, -6.0),
         "update_data_ratio/b.weight": falling(-2.5, -6.0)},
    ),
    "large first steps of a small output layer": ({}, {"update_data_ratio/b.weight": falling(-0.5, -2.5)}),
    "a start at 1 nat above": ({}, {"train/loss": falling(4.3, 2.0)}),
    "gain 5/3 and unlucky embeddings": ({}, {"saturation/a": flat(0.31), "saturation/b": flat(0.22)}),
    "PyTorch's own initialization, four ReLU layers": ({"bounded": ()}, {"preactivation_std/b": flat(0.04)}),
    "units that are silent in small minibatches": ({"batch_size": 8}, {"dead_units/a": flat(0.5)}),
    "some clipping": (
        {"clip_value": 1.0},
        {"grad_norm/before_clipping": flat(1.5), "grad_norm/after_clipping": flat(1.0)},
    ),
    "the lag of the first steps": ({}, {"batchnorm_var_lag/a": flat(1.0) | {0: 4.0, 50: 3.0}}),
    "dropout before there is a gap": ({"dropout": 0.3}, {"val/loss": {499: 1.9, 999: 1.8}}),
    "two losses that work against each other": (
        {"losses": 2, "loss": "bce", "targets": Scale(0.5, 0.5, 1.0), "constant_guess": 0.69},
        {"train/loss": rising(0.7, 3.0)},
    ),
    "a trained network at small steps": (
        {"pretrained": True},
        {f"update_data_ratio/{each}.weight": flat(-5.0) for each in "ab"},
    ),
    "a training loss with a factor": ({"loss_scale": None, "constant_guess": None}, {"val/loss": flat(4.4)}),
    "dropout, and a training loss with other terms": (
        {"loss_scale": None, "constant_guess": None, "dropout": 0.5},
        {"val/loss": flat(1.5)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SILENT)
def test_stays_silent(name: str) -> None:
    facts, numbers = SILENT[name]
    assert not ids(facts, numbers)


NAN = dict.fromkeys(STEPS)
"""Numbers none of which is finite."""
SPOILT: dict[str, Series] = {
    "loss from the start": {"train/loss": {**NAN}},
    "loss from the second step": {"train/loss": {**NAN, 0: 3.3}},
    "loss late": {"train/loss": {step: None if step > 400 else 3.0 for step in STEPS}},
    "validation": {"val/loss": {499: None, 749: None, 999: None}},
    "last validation": {"val/loss": {499: 2.9, 749: 2.9, 999: None}},
    "updates": {f"update_data_ratio/{each}.weight": {**NAN} for each in "ab"},
    "gradients late": {f"activation_grad_std/{each}": {**NAN, 0: 1e-3, 50: 1e-3, 100: 1e-3} for each in "ab"},
    "everything but the first": {tag: {**dict.fromkeys(of), 0: of.get(0, 1.0)} for tag, of in NUMBERS.items()},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spoilt", SPOILT)
def test_no_sentence_tells_of_nan(spoilt: str) -> None:
    for _, facts, numbers in FAULTS.values():
        evidence = Evidence(NUMBERS | SPOILT[spoilt] | numbers, replace(HEALTHY, **facts))
        both = Evidence(NUMBERS | numbers | SPOILT[spoilt], replace(HEALTHY, **facts))
        for finding in (*diagnose(evidence).findings, *diagnose(both).findings):
            assert not re.search(r"\bnan\b", finding.message)
            assert finding.value is None or math.isfinite(finding.value)


def test_a_loss_that_rises_at_small_steps_is_its_own_evidence() -> None:
    diagnosis = diagnose(Evidence(NUMBERS | {"train/loss": rising(3.3, 9.0)}, HEALTHY))
    finding = diagnosis.roots[0]
    assert (finding.id, finding.where, finding.value) == ("update_too_large", "train/loss", pytest.approx(9.0))
    assert finding.bound == pytest.approx(1.5 * 3.3)
    assert finding.message.startswith("The loss went from 3.3 to 9")


def test_the_first_layer_is_not_compared_with_itself() -> None:
    diagnosis = diagnose(Evidence(NUMBERS | {"activation_std/a": flat(50.0)}, replace(HEALTHY, bounded=())))
    finding = next(each for each in diagnosis.findings if each.id == "exploding_activations")
    assert finding.message.endswith("of 50, though it is the first layer: its weights or its inputs are too large.")


def test_examples_that_mix_explain_a_high_first_loss() -> None:
    numbers = NUMBERS | {"train/loss": falling(22.0, 2.5)}
    diagnosis = diagnose(Evidence(numbers, replace(HEALTHY, examples_mixed="net")))
    assert {each.id: each.because_of for each in diagnosis.findings} == {
        "examples_mixed": None,
        "confident_start": "examples_mixed",
    }


def test_a_learning_rate_too_high_explains_what_follows_from_it() -> None:
    _, facts, numbers = FAULTS["lr 500"]
    diagnosis = diagnose(Evidence(NUMBERS | numbers | {"dead_units/a": rising(0.0, 1.0)}, replace(HEALTHY, **facts)))
    assert [each.id for each in diagnosis.roots] == ["update_too_large"]
    causes = {each.id: each.because_of for each in diagnosis.findings}
    assert causes["dead_units"] == causes["diverged"] == "update_too_large"


def test_the_graph_of_causes_has_no_circle() -> None:
    def reaches(start: str, goal: str, seen: frozenset[str] = frozenset()) -> bool:
        return any(
            each == goal or (each not in seen and reaches(each, goal, seen | {each})) for each in RULES[start].explains
        )

    assert not [id for id in RULES if reaches(id, id)]
    assert {each for rule in RULES.values() for each in rule.explains} <= set(RULES)


def test_without_evidence_it_abstains_and_says_why() -> None:
    diagnosis = diagnose(Evidence({}))
    assert not diagnosis.findings
    abstained = {each.id: each.reason for each in diagnosis.abstentions}
    assert "not measured" in abstained["saturation"]
    assert not set(abstained) & set(diagnosis.checked)
    assert set(abstained) | set(diagnosis.checked) == set(RULES)


def test_formulas_know_every_activation_and_optimizer() -> None:
    gains = {name: each.gain for name, each in ACTIVATIONS.items()}
    assert {name: pytest.approx(gain, rel=1e-4) for name, gain in prescribing.GAINS.items()} == gains
    assert set(prescribing.RATES) == set(OPTIMIZERS)


def test_a_rule_that_fails_costs_no_verdict() -> None:
    series = {"train/loss": dict.fromkeys(range(50), 3.0), "activation_std/a": {0: "what"}}
    diagnosis = diagnose(Evidence(series))  # type: ignore[arg-type]
    failed = [each.reason for each in diagnosis.abstentions if each.reason.startswith("the rule failed, ")]
    assert failed
    assert "confident_start" in {*diagnosis.checked, *(each.id for each in diagnosis.abstentions)}


@pytest.mark.parametrize("options", [{}, {"ignore_index": 0}, {"weight": torch.tensor([1.0, 9.0, 0.5])}])
def test_the_constant_guess_is_the_loss_of_the_best_constant_logits(options: dict[str, Any]) -> None:
    y = torch.tensor([0] * 600 + [1] * 100 + [2] * 300)
    logits = torch.zeros(3, requires_grad=True)
    best = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        return functional.cross_entropy(logits.expand(len(y), 3), y, **options)

    def closure() -> torch.Tensor:
        best.zero_grad()
        value = loss()
        value.backward()
        return value

    best.step(closure)
    graph, targets = read_loss(loss()), TargetStatistics()
    assert graph is not None
    assert graph.alone
    targets.see(graph)
    assert targets.constant_guess(graph) == pytest.approx(loss().item(), abs=2e-3)


def test_what_multiplies_the_terms_of_a_loss_is_seen() -> None:
    z, y = torch.zeros(8, 3, requires_grad=True), torch.arange(8) % 3
    bce, weight = functional.binary_cross_entropy_with_logits, torch.tensor([1.0, 2.0, 3.0])
    one_hot = functional.one_hot(y, 3).float()
    losses = {
        "bce": bce(z, one_hot),
        "pos_weight": bce(z, one_hot, pos_weight=weight),
        "weight": bce(z, one_hot, weight=weight),
        "likelihood": functional.binary_cross_entropy(z.sigmoid(), one_hot, weight=weight),
        "sum": functional.cross_entropy(z, y, weight=weight, reduction="sum"),
        "ignored": functional.cross_entropy(z, y, ignore_index=0, reduction="none").mean(),
    }
    alone = {name: graph.alone for name, loss in losses.items() if (graph := read_loss(loss))}
    assert alone == {name: name not in ("pos_weight", "weight", "likelihood") for name in losses}
