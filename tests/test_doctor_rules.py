"""Each rule on evidence made by hand: it must fire, and on the healthy twin it must stay silent."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from makemore_pl.config.choices import OPTIMIZER_SETTINGS
from makemore_pl.doctor import prescribing
from makemore_pl.doctor.diagnosis import diagnose
from makemore_pl.doctor.evidence import Evidence
from makemore_pl.doctor.facts import Facts, OptimizerFacts, Scale
from makemore_pl.doctor.loss_graph import read_loss
from makemore_pl.doctor.plain_words import verdict
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
    "fading back, and late no more": (
        "vanishing_gradients",
        {},
        {"activation_grad_std/a": {step: 3e-6 if step < 600 else 1e-3 for step in STEPS}},
    ),
    "fading back": ("vanishing_gradients", {}, {"activation_grad_std/a": flat(1e-6)}),
    "growing back": ("exploding_gradients", {}, {"activation_grad_std/a": flat(1.0)}),
    "one jump": ("exploding_gradients", {}, {"grad_norm/before_clipping": flat(1.0) | {500: 5e3}}),
    "left out": ("frozen_parameters", {"not_optimized": ("a.weight",)}, {}),
    "lr 500": (
        "update_too_large",
        {},
        {"train/loss": rising(3.3, 700.0), **{f"update_data_ratio/{each}.weight": flat(-0.2) for each in "ab"}},
    ),
    "a rate too low for a small network": (
        "update_too_small",
        {"output": ("b.weight",), "optimizers": (OptimizerFacts("Adam", 2e-4),)},
        {"train/loss": rising(3.3, 2.6), "update_data_ratio/a.weight": flat(-3.3)},
    ),
    "a rate too low for a large output layer": (
        "update_too_small",
        {"output": ("b.weight",)},
        {"train/loss": rising(3.3, 2.6), "update_data_ratio/b.weight": flat(-4.5)},
    ),
    "no signal from example to example": ("vanishing_activations", {"signals": {"a": 0.5, "b": 0.001}}, {}),
    "weights that decay where there are no activation modules": (
        "overregularized",
        {"layers": (), "normalises": False, "optimizers": (OptimizerFacts("Adam", 1e-3, 0.0, 0.1),)},
        {f"preactivation_std/{each}": {} for each in "ab"}
        | {"grad_std/a.weight": falling(1.0, 0.1), "grad_data_ratio/a.weight": flat(1.0)},
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
    "no memory": ("batchnorm_noise", {"batchnorm_momentum": {"a": 1.0}}, {}),
    "long memory, and no probe": (
        "batchnorm_lag",
        {},
        {"batchnorm_mean_lag/a": flat(3.0), "batchnorm_gap/loss": {}, "val/loss": {499: 4.2, 749: 4.1, 999: 4.0}},
    ),
    "nan": ("not_finite", {}, {"train/loss": falling(3.3, 2.0) | {500: None}}),
    "inf in a gradient": ("not_finite", {}, {"not_finite/gradients": flat(0.0) | {500: 3.0}}),
    "up": (
        "diverged",
        {},
        {"train/loss": rising(3.3, 9.0), "update_data_ratio/a.weight": {}, "update_data_ratio/b.weight": {}},
    ),
    "spike": ("loss_spike", {}, {"train/loss": falling(3.3, 2.0) | {700: 30.0}}),
    "at the level of a guess": ("no_learning", {}, {"train/loss": falling(3.3, 2.8), "val/loss": flat(2.8)}),
    "validation targets that are easier": (
        "no_learning",
        {},
        {"train/loss": falling(3.3, 2.8), "val/loss": {499: 2.64, 749: 2.65, 999: 2.64}},
    ),
    "by heart": ("no_learning", {"validated_within": 3}, {"val/loss": {499: 2.85, 749: 2.9, 999: 2.95}}),
    "other data": ("train_val_mismatch", {}, {"val/loss": {499: 4.0, 749: 4.2, 999: 4.1}}),
    "up again": ("overfitting", {}, {"val/loss": {249: 2.1, 499: 2.3, 749: 2.5, 999: 2.7}}),
    "a few by heart": (
        "overfitting",
        {"examples": 40, "validated_within": 3},
        {"train/loss": falling(3.3, 0.01), "val/loss": {499: 2.85, 749: 2.9, 999: 2.95}},
    ),
    "all matrices replaced at once": (
        "update_too_large",
        {"output": ("c.weight",)},
        {
            "train/loss": falling(3.3, 2.4),
            **{f"update_data_ratio/{each}.weight": falling(-0.02, -2.5) for each in "ab"},
        },
    ),
    "a large step, then nothing finite": (
        "update_too_large",
        {},
        {
            "train/loss": falling(3.3, 2.0) | {950: None},
            **{f"update_data_ratio/{each}.weight": rising(-4.0, -0.5) for each in "ab"},
        },
    ),
    "much dropout": ("overregularized", {"dropout": 0.85}, {}),
    "decay": (
        "overregularized",
        {"optimizers": (OptimizerFacts("SGD", 0.1, 0.0, 0.3),)},
        {"preactivation_std/a": falling(1.2, 0.1)},
    ),
}
RATES = {f"update_data_ratio/{each}.weight": flat(-2.5) | {0: -0.1} for each in "ab"}
FAULTS |= {
    "quiet inputs": ("input_scale", {"inputs": Scale(0.0, 3e-3, 0.04)}, {}),
    "an autoencoder of bytes": (
        "input_scale", {"loss": "mse", "inputs": Scale(128.0, 60.0, 255.0), "targets": Scale(128.0, 60.0, 255.0)}, {},
    ),
    "nothing is finite after a first step": (
        "update_too_large", {}, {"train/loss": dict.fromkeys(STEPS) | {0: 3.3}, **{tag: {0: -0.1} for tag in RATES}},
    ),
    "nothing is learned after a first step that was too large": (
        "update_too_large", {}, {**RATES, "train/loss": falling(3.3, 2.8), "val/loss": flat(2.8)},
    ),
    "a layer that a step has killed": (
        "update_too_large",
        {"rectified": ("a",), "bounded": ()},
        {"stuck_units/a": flat(1.0) | {0: 0.1}, "train/loss": falling(3.3, 2.8), "val/loss": flat(2.8),
         **{tag: flat(-2.5) | {0: -1.1} for tag in RATES}},
    ),
    "activations that overflow": (
        "exploding_activations",
        {"bounded": ()},
        {"activation_std/a": flat(1e20), "activation_std/b": dict.fromkeys(STEPS), "train/loss": dict.fromkeys(STEPS)},
    ),
    "other inputs in validation": (
        "train_val_mismatch",
        {"inputs_validated": Scale(2.0, 4.0, 14.0), "validated_within": 2},
        {"val/loss": {499: 4.0, 749: 4.3, 999: 4.6}},
    ),
    "decay that is harder than the gradient": (
        "overregularized",
        {"optimizers": (OptimizerFacts("Adam", 1e-3, 0.0, 0.1),)},
        {f"grad_data_ratio/{each}.weight": flat(0.02) for each in "ab"},
    ),
    "a steep fall at small steps": (
        "update_too_small",
        {"optimizers": (OptimizerFacts("Adam", 1e-4),)},
        {"train/loss": {step: 3.3 * math.exp(-step / 850) for step in STEPS}, "val/loss": {},
         **{tag: flat(-3.25) for tag in RATES}},
    ),
}  # fmt: skip
FAULTS |= {
    "fading where there are skip connections": (
        "vanishing_activations", {"way_around": True}, {"preactivation_std/b": flat(0.005)},
    ),
    "no memory in batches of eight": (
        "batchnorm_noise", {"values_per_channel": {"a": 8}, "batchnorm_momentum": {"a": 1.0}}, {},
    ),
    "eight examples": (
        "batchnorm_small_batch", {"values_per_channel": {"a": 8}, "batchnorm_momentum": {"a": 0.1}}, {},
    ),
    "four examples and no memory": (
        "batchnorm_small_batch", {"values_per_channel": {"a": 4}, "batchnorm_momentum": {"a": 1.0}}, {},
    ),
    "dropout, and nothing is learned": (
        "overregularized", {"dropout": 0.6}, {"train/loss": falling(3.3, 2.8), "val/loss": {}},
    ),
    "a first step so large that the first stride does not end": (
        "update_too_large",
        {},
        {"train/loss": {0: 3.3, 1: None}, "train/loss_mean": {0: 3.3}, "val/loss": {}}
        | {tag: {0: 0.0} for tag in RATES},
    ),
    "momentum 0.001": (
        "batchnorm_lag",
        {"batchnorm_momentum": {"a": 0.001}},
        {"batchnorm_mean_lag/a": flat(3.0), "batchnorm_gap/loss": {}, "val/loss": {}},
    ),
}  # fmt: skip
INFORMATION: dict[str, tuple[str, dict[str, Any], Series]] = {
    "bias": ("bias_before_batchnorm", {"bias_before_batchnorm": ("a",)}, {}),
    "frozen on purpose": ("frozen_parameters", {"frozen": ("a.weight",)}, {}),
    "never used": ("no_gradient", {"unused": ("a.weight",)}, {}),
    "dead where the loss is far below a guess's": (
        "dead_units",
        {"rectified": ("a",), "bounded": (), "constant_guess": 5.0},
        {"stuck_units/a": flat(0.7)},
    ),
    "eval on purpose": ("batchnorm_eval", {"asleep_on_purpose": ("a",)}, {}),
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
    id, facts, numbers = INFORMATION[name]
    assert ids(facts, numbers) == {id: "info"}


def test_every_rule_has_a_case_in_which_it_must_fire() -> None:
    assert set(RULES) - {id for id, *_ in FAULTS.values()} - {id for id, *_ in INFORMATION.values()} == set()


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
    "a zero matrix that is left at once": (
        {"output": ("c.weight",)},
        {"train/loss": falling(3.3, 2.4), "update_data_ratio/a.weight": falling(-0.02, -2.5)},
    ),
    "training noise above a guess, validation below it": (
        {},
        {"train/loss": falling(3.3, 2.8), "val/loss": {499: 2.7, 749: 2.65, 999: 2.6}},
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
    "a convolution's lag, whose standard errors are small": (
        {"values_per_channel": {"a": 4608}, "validated_within": 1},
        {"batchnorm_mean_lag/a": flat(4.2), "batchnorm_gap/loss": {}, "val/loss": {499: 2.6, 749: 2.5, 999: 2.4}},
    ),
    "one hard minibatch": ({}, {"train/loss": {step: 9.0 if step == 500 else 2.0 for step in range(1000)}}),
    "a likelihood of a density, which passes zero": (
        {"loss": None, "loss_scale": None, "constant_guess": None},
        {"train/loss": falling(0.4, -2.0) | {950: 0.5}, "val/loss": flat(-1.9)},
    ),
    "a validation loss that moves by a trifle": ({}, {"train/loss": falling(3.3, 1e-4), "val/loss":
        {249: 8e-4, 499: 8e-4, 749: 9e-4, 999: 9e-4}}),
    "rare hard examples in training": (
        {},
        {"train/loss": {step: 1.5 if step % 5 == 0 else 0.01 for step in range(1000)} | {0: 3.3},
         "val/loss": {499: 0.36, 749: 0.35, 999: 0.34}},
    ),
    "a tanh at the output": ({"bounded": ("a", "b"), "final": ("b",)}, {"preactivation_std/b": flat(0.05)}),
    "ReLU units without signal are not dead": (
        {"bounded": (), "rectified": ("a", "b"), "signals": {}},
        {"stuck_units/b": flat(1.0), "preactivation_std/b": rising(0.02, 0.001)},
    ),
    "gradients that fade at the start only": (
        {},
        {"activation_grad_std/a": {step: 3e-6 if step < 400 else 1e-3 for step in STEPS}},
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


SILENT |= {
    "an overshoot in the first steps": (
        {}, {"train/loss": {step: 9.0 if 1 < step < 15 else 1.0 + 2.3 * math.exp(-step / 50) for step in range(300)}},
    ),
    "minibatches of two": (
        {"batch_size": 2, "values_per_channel": {}, "loss": "mse", "constant_guess": 1.0},
        {"train/loss": {step: (0.1, 0.2, 4.0, 0.3, 6.0, 0.1, 5.0)[step % 7] / 4 for step in range(700)},
         "val/loss": flat(0.5), "batchnorm_gap/loss": {}},
    ),
    "other inputs in validation that do no harm": ({"inputs_validated": Scale(0.0, 2.0, 9.0)}, {}),
    "a few examples in training, and others in validation": (
        {"inputs_validated": Scale(0.0, 2.0, 9.0), "batch_size": 2, "validated_within": 2},
        {"val/loss": {499: 2.4, 749: 2.4, 999: 2.39}},
    ),
    "decay of an optimizer that is no part of the gradient": (
        {"optimizers": (OptimizerFacts("AdamW", 1e-3, 0.0, 0.1),)},
        {f"grad_data_ratio/{each}.weight": flat(0.02) for each in "ab"},
    ),
    "weights that decay behind a normalisation": (
        {"optimizers": (OptimizerFacts("AdamW", 1e-3, 0.0, 0.1),)},
        {"grad_std/a.weight": falling(1.0, 0.1), "grad_data_ratio/a.weight": flat(1.0)},
    ),
    "some dead units where it is not known what can be learned": (
        {"rectified": ("a",), "bounded": (), "batch_size": 4}, {"stuck_units/a": flat(0.8)},
    ),
    "the mean over an image gives each pixel a small share of the gradient": (
        {"positions": {"a": 196, "b": 1}}, {"activation_grad_std/a": flat(6e-6)},
    ),
    "two targets that lie close together": (
        {"loss": "mse", "targets": Scale(2.0, 0.1, 2.1), "batch_size": 2, "constant_guess": None}, {},
    ),
    "an output layer that starts too large": (
        {"output": ("b.weight",), "optimizers": (OptimizerFacts("Adam", 2e-3),)},
        {"train/loss": rising(4.4, 2.6), "update_data_ratio/b.weight": flat(-4.5)},
    ),
}  # fmt: skip


SILENT |= {
    "tanh fades where there are skip connections": ({"way_around": True}, {"preactivation_std/b": flat(0.05)}),
    "a branch fades that a skip connection leads around": ({"way_around": True}, {"preactivation_std/a": flat(0.001)}),
    "a lag of statistics that remember ten batches": (
        {"batchnorm_momentum": {"a": 0.1}},
        {"batchnorm_mean_lag/a": flat(3.0), "batchnorm_gap/loss": {}, "val/loss": {}},
    ),
    "activations that shrink by more than decay can explain": (
        {"optimizers": (OptimizerFacts("AdamW", 1e-3, 0.0, 0.01),)},
        {"lr": flat(1e-3), "preactivation_std/a": falling(1.2, 0.1)},
    ),
    "two losses, each with a last layer of its own": ({"losses": 2}, {"activation_grad_std/a": flat(1.0)}),
    "dropout where something is learned": ({"dropout": 0.6}, {"train/loss": falling(3.3, 2.6), "val/loss": {}}),
}  # fmt: skip


NEAR: dict[str, tuple[dict[str, Any], Series]] = {
    # id: facts and numbers that are just on the healthy side of its bound
    "constant_input": ({"inputs": Scale(0.0, 1e-6, 1.0), "inputs_vary": True}, {}),
    "input_scale": ({"inputs": Scale(0.0, 9.9, 40.0, feature_spread=99.0)}, {}),
    "target_scale": ({"loss": "mse", "targets": Scale(0.0, 9.9, 40.0)}, {}),
    "symmetric_units": ({"copies": {"a.weight": 0.49}}, {}),
    "confident_start": ({}, {"train/loss": falling(4.7, 2.0)}),
    "linear_network": ({"linear_pairs": ()}, {}),
    "softmax_before_cross_entropy": ({"activation_before_loss": None}, {}),
    "activation_before_loss": ({"loss": "mse", "activation_before_loss": "sigmoid", "outside": 0.01}, {}),
    "saturation": ({}, {"saturation/a": flat(0.35), "saturation/b": flat(0.26)}),
    "exploding_activations": ({"bounded": ()}, {"activation_std/b": flat(8.0)}),
    "vanishing_activations": ({"signals": {"a": 0.003}}, {"preactivation_std/b": flat(0.11)}),
    "dead_units": ({"rectified": ("b",)}, {"dead_units/a": flat(0.19), "stuck_units/b": flat(0.55)}),
    "gradients_accumulate": ({"accumulates": False}, {}),
    "examples_mixed": ({"examples_mixed": ""}, {}),
    "no_gradient": ({"unreached": ()}, {}),
    "vanishing_gradients": ({}, {"activation_grad_std/a": flat(1.2e-5)}),
    "exploding_gradients": (
        {},
        {"activation_grad_std/a": flat(0.09), "grad_norm/before_clipping": flat(1.0) | {500: 900}},
    ),
    "frozen_parameters": ({"not_optimized": ()}, {}),
    "update_too_large": ({}, {f"update_data_ratio/{each}.weight": flat(-0.9) for each in "ab"}),
    "update_too_small": ({}, {f"update_data_ratio/{each}.weight": flat(-3.35) for each in "ab"}),
    "clipping": (
        {"clip_value": 0.6},
        {"grad_norm/before_clipping": flat(1.0), "grad_norm/after_clipping": flat(0.6)},
    ),
    "batchnorm_eval": ({"asleep": ()}, {}),
    "bias_before_batchnorm": ({"bias_before_batchnorm": ()}, {}),
    "batchnorm_small_batch": ({"values_per_channel": {"a": 12}}, {}),
    "batchnorm_lag": ({}, {"batchnorm_mean_lag/a": flat(7.0), "batchnorm_gap/loss": flat(0.04)}),
    "batchnorm_noise": ({"batchnorm_momentum": {"a": 0.88}}, {"batchnorm_gap/loss": flat(0.04)}),
    "not_finite": ({}, {}),
    "diverged": ({}, {"train/loss": rising(3.3, 4.9)}),
    "loss_spike": ({}, {"train/loss": falling(3.3, 2.0) | {700: 5.9}}),
    "train_val_mismatch": ({}, {"val/loss": {499: 2.2, 749: 2.3, 999: 2.4}}),
    "no_learning": ({}, {"train/loss": falling(3.3, 2.7)}),
    "overfitting": ({}, {"val/loss": {249: 2.2, 499: 2.1, 749: 2.1, 999: 2.19}}),
    "overregularized": ({"dropout": 0.56}, {"val/loss": flat(2.05)}),
}


@pytest.mark.parametrize("id", RULES)
def test_each_rule_is_silent_just_short_of_its_bound(id: str) -> None:
    assert id in NEAR, f"{id} has no case in which it must stay silent"
    facts, numbers = NEAR[id]
    diagnosis = diagnose(Evidence(NUMBERS | numbers, replace(HEALTHY, **facts)))
    assert id not in {each.id for each in diagnosis.findings}
    assert id in diagnosis.checked, [each.reason for each in diagnosis.abstentions if each.id == id]


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


SATURATED: Series = {f"saturation/{each}": flat(0.9) for each in "ab"}
ROOTS: dict[str, tuple[set[str], dict[str, Any], Series]] = {
    # name: (roots, facts that differ, numbers that differ)
    "one input for all has no variance that statistics could follow": (
        {"constant_input"}, {"inputs_vary": False}, FAULTS["long memory"][2],
    ),
    "a ReLU at the output passes no gradient": (
        {"activation_before_loss"},
        {"loss": "mse", "activation_before_loss": "relu", "outside": 0.5, "unreached": ("a.weight",)},
        {},
    ),
    "sums of equal weights are large": ({"symmetric_units"}, {"copies": {"a.weight": 1.0}}, SATURATED),
    "a nan comes in behind the first layer": (
        {"not_finite"}, {"bounded": ()}, {"activation_std/b": dict.fromkeys(STEPS), "train/loss": dict.fromkeys(STEPS)},
    ),
    "a confident start does not raise the loss": (
        {"confident_start", "saturation", "update_too_large"},
        {},
        FAULTS["lr 500"][2] | SATURATED | {"train/loss": rising(22.0, 700.0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROOTS)
def test_what_follows_from_another_fault_is_no_root(name: str) -> None:
    roots, facts, numbers = ROOTS[name]
    assert {each.id for each in diagnose(Evidence(NUMBERS | numbers, replace(HEALTHY, **facts))).roots} == roots


def test_a_learning_rate_too_high_explains_what_follows_from_it() -> None:
    _, facts, numbers = FAULTS["lr 500"]
    diagnosis = diagnose(Evidence(NUMBERS | numbers | {"dead_units/a": rising(0.0, 1.0)}, replace(HEALTHY, **facts)))
    assert [each.id for each in diagnosis.roots] == ["update_too_large"]
    causes = {each.id: each.because_of for each in diagnosis.findings}
    assert causes["dead_units"] == causes["diverged"] == "update_too_large"


def test_a_jump_of_the_loss_that_dies_down_is_the_learning_rates() -> None:
    """The units are dead then, the last bias alone still learns, and its steps and gradients are small."""
    facts = replace(HEALTHY, rectified=("a", "b"), bounded=())
    numbers: Series = {
        "train/loss": falling(3.3, 2.9) | {50: 7e4, 100: 6e3, 150: 900.0, 200: 50.0},
        "grad_norm/before_clipping": flat(0.1) | {50: 2e4},
        **{f"stuck_units/{each}": flat(1.0) | {0: 0.0} for each in "ab"},
        **{f"update_data_ratio/{each}.weight": flat(-6.0) | {0: 0.0, 50: -1.2} for each in "ab"},
    }
    diagnosis = diagnose(Evidence(NUMBERS | numbers, facts))
    causes = {each.id: each.because_of for each in diagnosis.findings}
    assert [each.id for each in diagnosis.roots] == ["update_too_large"]
    assert causes["dead_units"] == causes["update_too_small"] == "update_too_large"
    assert "exploding_gradients" not in causes


def test_what_no_signal_reaches_is_not_dead_of_itself() -> None:
    """A bias decides then whether a ReLU is on, for all examples alike."""
    facts = replace(HEALTHY, rectified=("a", "b"), bounded=(), signals={"a": 0.5, "b": 0.001})
    diagnosis = diagnose(Evidence(NUMBERS | {"stuck_units/b": flat(0.8)}, facts))
    assert {each.id: each.because_of for each in diagnosis.findings} == {
        "vanishing_activations": None,
        "dead_units": "vanishing_activations",
    }


@pytest.mark.parametrize("fault", ["lr 0.001", "lr 500", "fading back", "one jump"])
def test_minibatches_of_two_explain_gradients_and_steps(fault: str) -> None:
    numbers = NUMBERS | FAULTS[fault][2]
    diagnosis = diagnose(Evidence(numbers, replace(HEALTHY, values_per_channel={"a": 2})))
    assert [each.id for each in diagnosis.roots] == ["batchnorm_small_batch"]
    assert FAULTS[fault][0] in {each.id for each in diagnosis.findings}


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
    assert not diagnosis.checked
    assert [each.id for each in diagnosis.abstentions] == list(RULES)
    assert all(each.applies and each.reason for each in diagnosis.abstentions)


def test_what_does_not_apply_is_no_lack() -> None:
    """Classes have no scale, a network without BatchNorm no running statistics: nothing was missed there."""
    diagnosis = diagnose(Evidence(NUMBERS, replace(HEALTHY, values_per_channel={})))
    aside = {each.id: each.reason for each in diagnosis.abstentions if not each.applies}
    normalising = {id for id, rule in RULES.items() if rule.phase == "batchnorm"}
    assert set(aside) == normalising | {"target_scale", "clipping", "overregularized"}
    assert not set(aside) & set(diagnosis.checked)
    assert not any(id in line for id in aside for line in verdict(diagnosis))
    assert {each["id"]: each["applies"] for each in diagnosis.as_json()["abstentions"]} == dict.fromkeys(aside, False)


def test_a_reason_that_is_noted_is_told() -> None:
    facts = replace(HEALTHY, copies=None, unknown={"copies": "the weights are quantized"})
    told = {each.id: each.reason for each in diagnose(Evidence(NUMBERS, facts)).abstentions}
    assert told["symmetric_units"] == "the weights are quantized"


def test_formulas_know_every_optimizer() -> None:
    assert set(prescribing.RATES) == set(OPTIMIZER_SETTINGS)


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


def scaled_by(make: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float | None:
    """What TargetStatistics takes for the factor between a loss and the mean of its terms, from three minibatches."""
    targets = TargetStatistics()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        z, y = torch.randn(8, 3, generator=generator).requires_grad_(), torch.randint(3, (8,), generator=generator)
        graph = read_loss(loss := make(z, y))
        assert graph is not None
        targets.see(graph)
        targets.see_number(graph, loss)
    return targets.loss_scale()


ce, soft = functional.cross_entropy, functional.softmax
SCALES: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], float | None]] = {
    "mean": (ce, 1.0),
    "halved": (lambda z, y: ce(z, y) / 2, 0.5),
    "sum": (lambda z, y: ce(z, y, reduction="sum"), 8.0),
    "sum over N": (lambda z, y: ce(z, y, reduction="sum") / len(y), 1.0),
    "none and mean": (lambda z, y: ce(z, y, reduction="none").mean() * 3, 3.0),
    "soft targets": (lambda z, y: ce(z, soft(z.detach() * 2, 1)), 1.0),
    "squares by hand, summed over outputs": (lambda z, y: ((z - 1) ** 2).sum(1).mean(), 3.0),
    "masked": (lambda z, y: (ce(z, y, reduction="none") * (y > 0)).sum() / 8, None),
    "with another term": (lambda z, y: ce(z, y) + 0.1 * z.square().mean(), None),
    "not linear": (lambda z, y: ce(z, y).sqrt(), None),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALES)
def test_a_loss_is_known_up_to_its_factor(name: str) -> None:
    make, expected = SCALES[name]
    found = scaled_by(make)
    assert found == (expected if expected is None else pytest.approx(expected, rel=1e-4))


BEFORE: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str | None]] = {
    "softmax": (lambda z: soft(z, 1), "softmax"),
    "softmax over a temperature": (lambda z: soft(z, 1) / 0.5, "softmax"),
    "softmax and an epsilon": (lambda z: soft(z, 1) + 1e-8, "softmax"),
    "softmax of a temperature": (lambda z: 1 - soft(z / 0.1, 1), "softmax"),
    "softmax, and a layer": (lambda z: soft(z, 1) @ torch.ones(3, 3), None),
    "softmax times softmax": (lambda z: soft(z, 1) * soft(2 * z, 1), None),
    "tanh": (torch.tanh, "tanh"),
    "a soft cap": (lambda z: 30 * torch.tanh(z / 30), None),
    "logits": (lambda z: z, None),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_comes_before_the_loss(name: str) -> None:
    make, expected = BEFORE[name]
    graph = read_loss(ce(make(torch.randn(8, 3, requires_grad=True)), torch.arange(8) % 3))
    assert graph is not None
    assert (graph.kind, graph.activation) == ("cross_entropy", expected)


def test_a_loss_behind_a_layer_is_none() -> None:
    """A squared difference in the network, as of a normalisation by hand, is no squared error."""
    x = torch.randn(8, 3, requires_grad=True)
    y = functional.linear((x - x.mean()) ** 2, torch.ones(1, 3), torch.zeros(1))
    assert read_loss(y.relu().mean()) is None
