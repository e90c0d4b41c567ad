"""Turns root findings into changes of this project's config, by formulas; for other modules into advice in words."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from makemore_pl.activations import ACTIVATIONS
from makemore_pl.doctor.evidence import Abstain, Evidence, median
from makemore_pl.doctor.finding import Diagnosis, Finding, Prescription
from makemore_pl.doctor.rule import RULES
from makemore_pl.doctor.update_ratios import livelier_ratios, typical_ratio

LOGITS = 0.2
"""Standard deviation that logits should have at the start. With it the first loss is 0.02 nats above ln V."""
RATIO = -2.5
"""The log10 of update over data that a prescription aims at. Our networks train well there; at the edge of the healthy
band a short run would still be too slow."""
RATES = {"sgd": 0.1, "adam": 0.003, "adamw": 0.003, "rmsprop": 0.001}
"""Learning rates with which our networks are known to train."""


@dataclass(frozen=True, slots=True)
class Patient:
    """The input of the formulas."""

    finding: Finding
    evidence: Evidence
    config: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        section, _, name = key.partition(".")
        return self.config[section][name]

    def start(self, quantity: str, place: int) -> float:
        layers = list(self.evidence.of(quantity).values())
        return layers[place].start if layers else math.nan


Formula = Callable[[Patient], Prescription | None]


def prescribe(diagnosis: Diagnosis, evidence: Evidence, config: Mapping[str, Any] | None) -> tuple[Prescription, ...]:
    """A prescription for each root finding. Without a config of this project it is advice in words."""
    found = []
    for finding in diagnosis.roots:
        formula = FORMULAS.get(finding.id)
        prescription = None
        if config is not None and formula:
            with suppress(Abstain):  # what the formula needs was not measured
                prescription = formula(Patient(finding, evidence, config))
        found.append(prescription or Prescription(finding.id, (), RULES[finding.id].remedy))
    return tuple(found)


def combined(prescriptions: tuple[Prescription, ...]) -> list[str]:
    """The overrides of all prescriptions. If two have the same key, the first one counts, because causes come first."""
    chosen: dict[str, str] = {}
    for prescription in prescriptions:
        for override in prescription.overrides:
            chosen.setdefault(override.partition("=")[0], override)
    return list(chosen.values())


def rounded(value: float, digits: int = 1) -> str:
    """The value with this many significant digits."""
    return f"{float(f'{value:.{digits - 1}e}'):g}"


def snapped(value: float) -> str:
    """The nearest number of the form 1, 2 or 5 times a power of ten."""
    exponent = math.floor(math.log10(value))
    choices = [digit * 10.0**power for power in (exponent, exponent + 1) for digit in (1, 2, 5)]
    return f"{min(choices, key=lambda each: abs(math.log(each / value))):g}"


def _output(patient: Patient) -> Prescription:
    classes = patient.evidence.facts.classes or 27
    if patient["model.batchnorm"] in ("output", "pre_output"):
        scale, how = LOGITS, "BatchNorm's weight is the logits' standard deviation"
    else:
        mean, std = patient.start("activation_mean", -1), patient.start("activation_std", -1)
        size = math.hypot(mean, std) if patient["model.batchnorm"] != "post" else 1.0
        size = size if math.isfinite(size) and size > 0 else 1.0
        scale = LOGITS / (size * math.sqrt(patient["model.n_hidden"]))
        how = (
            f"{LOGITS} over sqrt(n_hidden) = {math.sqrt(patient['model.n_hidden']):.1f} and the activations' {size:.2f}"
        )
    overrides = [f"model.output_scale={rounded(scale)}"]
    if patient["model.output_bias"] > LOGITS:
        overrides.append("model.output_bias=0")
    start = math.log(classes) + LOGITS**2 / 2 * (1 - 1 / classes)
    why = f"logits of standard deviation {LOGITS} cost {LOGITS**2 / 2:.2f} nats at the start: {how}"
    return Prescription("confident_start", tuple(overrides), why, {"initial_loss": round(start, 3)})


def _hidden_weights(patient: Patient) -> Prescription:
    activation = patient["model.activation"]
    wanted = ACTIVATIONS[activation].gain
    gain, init, bias = patient["model.gain"], patient["model.init"], patient["model.hidden_bias"]
    gain = gain if gain is not None else wanted if init in ("kaiming", "xavier") else 1.0
    calm = ("model.hidden_bias=0.01",) if bias > 0.1 else ()
    by_rule = ("model.init=kaiming", "model.gain=null", *calm)
    spread = patient.start("preactivation_std", 0)
    from_weights = math.sqrt(max(spread**2 - bias**2, 0.0)) if math.isfinite(spread) else math.nan
    alternatives = (by_rule, ("model.batchnorm=pre",))
    one_gain_fits = init in ("kaiming", "xavier") or (init == "normal" and patient["model.n_layers"] == 1)
    if not (one_gain_fits and from_weights > 0):
        why = f"weights with standard deviation {wanted:.3g} / sqrt(fan_in) keep the spread of the activations"
        return Prescription(patient.finding.id, by_rule, why, {"preactivation_std": round(wanted, 2)}, alternatives[1:])
    gain = rounded(gain * wanted / from_weights, 2)
    why = (
        f"the weights give the first layer a preactivation_std of {from_weights:.3g}, {activation} wants {wanted:.3g}: "
        f"gain times {wanted:.3g} / {from_weights:.3g}"
    )
    overrides = (f"model.gain={gain}", *calm)
    return Prescription(
        patient.finding.id, overrides, why, {"preactivation_std": round(wanted, 2)}, alternatives
    )  # fmt: skip


def _by_the_book(patient: Patient) -> Prescription:
    why = "weights with standard deviation gain / sqrt(fan_in) neither grow nor shrink the signal"
    overrides = ("model.init=kaiming", "model.gain=null", "model.hidden_bias=0")
    return Prescription(patient.finding.id, overrides, why, {}, (("model.batchnorm=pre",),))


def _nonlinear(patient: Patient) -> Prescription:
    why = "a tanh after each hidden layer, with its own gain"
    choices = (("model.activation=relu", "model.gain=null"), ("model.activation=gelu", "model.gain=null"))
    return Prescription("linear_network", ("model.activation=tanh", "model.gain=null"), why, {}, choices)


def _raise_rate(patient: Patient) -> Prescription | None:
    ratio = min(livelier_ratios(patient.evidence)) if patient.finding.value is None else patient.finding.value
    if not math.isfinite(ratio):
        return None
    lr = patient["optim.lr"] * min(10 ** (RATIO - ratio), 1e3)
    why = f"update over data goes with the learning rate, decade by decade: from {ratio:.1f} to {RATIO}"
    return Prescription("update_too_small", (f"optim.lr={snapped(lr)}",), why, {"update_data_ratio": RATIO})


def _lower_rate(patient: Patient) -> Prescription:
    lr, known = patient["optim.lr"], RATES[patient["optim.name"]] * (1 - patient["optim.momentum"])
    ratio = typical_ratio(patient.evidence)
    formula = lr * 10 ** (RATIO - ratio) if math.isfinite(ratio) and ratio > RATIO else lr / 10
    chosen = min(formula, known) if lr > known else formula
    why = f"steps {'above what these networks bear' if chosen == known else f'of 10^{ratio:.1f} of a weight'}; "
    why += f"{patient['optim.name']} trains them at {known:g}"
    return Prescription(patient.finding.id, (f"optim.lr={snapped(chosen)}",), why, {"update_data_ratio": RATIO})


def _larger_batch(patient: Patient) -> Prescription:
    why = "32 examples a minibatch give batch statistics that are good to a sixth of a standard deviation"
    return Prescription(patient.finding.id, ("data.batch_size=32",), why, {}, (("model.batchnorm=none",),))


def _statistics(patient: Patient) -> Prescription:
    momentum = patient["model.bn_momentum"]
    if patient.finding.id == "batchnorm_lag":
        why = f"a memory of {1 / momentum:,.0f} batches is too long for {patient.evidence.last_step + 1:,} steps"
        return Prescription(patient.finding.id, (f"model.bn_momentum={max(0.1, momentum)}",), why)
    if momentum > 0.1:
        return Prescription(patient.finding.id, ("model.bn_momentum=0.1",), "a memory of 10 batches instead of one")
    size = 2 * patient["data.batch_size"]
    why = f"a memory of {1 / momentum:,.0f} batches is too short for batches this small"
    alternatives = ((f"data.batch_size={size}",), ("model.batchnorm=none",))
    return Prescription(patient.finding.id, (f"model.bn_momentum={rounded(momentum / 10)}",), why, {}, alternatives)


def _looser_clipping(patient: Patient) -> Prescription | None:
    norm = patient.evidence.get("grad_norm/before_clipping")
    if norm is None:
        return None
    late = norm.values[len(norm.values) // 2 :]
    if not np.isfinite(late).any():
        return None
    value = rounded(float(np.nanpercentile(late, 90)), 1)
    why = f"the 90th percentile of the norms that come, median {median(late):.2g}"
    override = f"trainer.gradient_clip_val={value}"
    return Prescription(patient.finding.id, (override,), why, {}, (("trainer.gradient_clip_val=null",),))


def _regularize_less(patient: Patient) -> Prescription:
    if patient.finding.where == "dropout":
        return Prescription("overregularized", ("model.dropout=0",), "there is no gap for dropout to close")
    decay = patient["optim.weight_decay"]
    why = "the gradient has to win against the decay"
    alternatives = ((f"optim.weight_decay={rounded(decay / 1000)}",),)
    return Prescription("overregularized", ("optim.weight_decay=0",), why, {}, alternatives)


def _stop_early(patient: Patient) -> Prescription:
    steps = f"trainer.max_steps={max(patient.finding.step + 1, 2)}"
    why = "stop where the validation loss was lowest"
    return Prescription("overfitting", (steps,), why, {}, (("model.dropout=0.2",), ("optim.weight_decay=0.0001",)))


FORMULAS: dict[str, Formula] = {
    "confident_start": _output,
    "saturation": _hidden_weights,
    "vanishing_activations": _hidden_weights,
    "vanishing_gradients": _by_the_book,
    "exploding_activations": _by_the_book,
    "exploding_gradients": _by_the_book,
    "linear_network": _nonlinear,
    "update_too_small": _raise_rate,
    "update_too_large": _lower_rate,
    "dead_units": _lower_rate,
    "diverged": _lower_rate,
    "not_finite": _lower_rate,
    "loss_spike": _lower_rate,
    "batchnorm_small_batch": _larger_batch,
    "batchnorm_lag": _statistics,
    "batchnorm_noise": _statistics,
    "clipping": _looser_clipping,
    "overregularized": _regularize_less,
    "overfitting": _stop_early,
}
"""Finding id -> formula. The other findings have advice in words only."""
