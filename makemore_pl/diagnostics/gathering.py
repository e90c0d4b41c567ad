"""Chooses the instruments for a module, and turns what they saw into the facts that the doctor's rules use."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from makemore_pl.diagnostics.activation_stats import ActivationStats, is_activation, is_relu, is_tanh
from makemore_pl.diagnostics.batchnorm_stats import BatchNormStats
from makemore_pl.diagnostics.callback import DiagnosticsCallback
from makemore_pl.diagnostics.first_batches import FirstBatches
from makemore_pl.diagnostics.function_record import FunctionRecord
from makemore_pl.diagnostics.gradient_stats import GradientStats
from makemore_pl.diagnostics.host import Trainer
from makemore_pl.diagnostics.loss_record import LossRecord
from makemore_pl.diagnostics.tag_names import layer_names, matrices, without_compiled
from makemore_pl.diagnostics.update_stats import UpdateStats
from makemore_pl.doctor.facts import Facts, OptimizerFacts
from makemore_pl.doctor.inspection import Inspection

Numbers = Mapping[str, Mapping[int, float | None]]
FEW = "fewer than three steps were looked at"


def instruments(module: nn.Module) -> list[DiagnosticsCallback]:
    """The callbacks whose numbers the rules use, without those that have nothing to measure in this module."""
    found: list[DiagnosticsCallback] = []
    if any(is_activation(each) for each in module.modules()):
        found.append(ActivationStats())
    found += [GradientStats(), UpdateStats()]
    if any(isinstance(each, _BatchNorm) for each in module.modules()):
        found.append(BatchNormStats())
    return found


def examples_of(trainer: Trainer) -> int | None:
    """Examples of the training data; None where its loader does not tell, or what it loads may be whole minibatches."""
    loader: Any = trainer.train_dataloader
    if getattr(loader, "batch_size", None) is None:
        return None
    try:
        return len(loader.dataset)
    except (TypeError, NotImplementedError):  # it is a stream
        return None


def of_optimizers(
    facts: Facts,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    reached: Collection[nn.Parameter],
    series: Numbers,
) -> None:
    """Fill in which optimizer trains which parameter.

    Args:
        reached: parameters that had a gradient in some watched step.
        series: tag -> step -> number.
    """
    named = matrices(module)
    # not .weight: to read it moves the state of a parametrization such as spectral_norm
    embeddings = {p for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for p in m.parameters()}
    facts.matrices = tuple(named)
    facts.vocabulary = tuple(name for name, parameter in named.items() if parameter in embeddings)
    facts.optimizers = tuple(_optimizer(each) for each in optimizers)
    owned = {parameter for each in optimizers for group in each.param_groups for parameter in group["params"]}
    everything = {without_compiled(name): parameter for name, parameter in module.named_parameters()}
    trained = {name: parameter for name, parameter in everything.items() if parameter.requires_grad}
    facts.frozen = tuple(name for name in everything if name not in trained)
    facts.not_optimized = tuple(name for name, p in trained.items() if p not in owned and p in reached)
    zero = {
        parameter
        for name, parameter in named.items()
        if len(values := series.get(f"grad_std/{name}", {})) >= 3 and not any(values.values())
    }
    facts.unreached = tuple(name for name, p in trained.items() if p in owned and (p not in reached or p in zero))


def of_first_batches(facts: Facts, module: nn.Module, first: FirstBatches, functions: FunctionRecord) -> None:
    """Fill in layers, their order and modes, and what else the first batches told. Call it after `of_optimizers`."""
    facts.batch_size, facts.copies = first.batch_size, first.copies
    facts.inputs, facts.inputs_vary = first.inputs, first.inputs_vary
    facts.inputs_validated = first.inputs_validated
    facts.examples_mixed, facts.accumulates = first.examples_mixed, first.accumulates()
    facts.unknown = {"accumulates": FEW, "unreached": FEW} | first.unknown
    seen = first.seen
    facts.tokens, facts.inputs_normalised = seen.begins_with_embedding, seen.begins_normalised
    if seen.order:
        _of_calls(facts, module, seen, functions)
    for name, why in list(seen.failures.items())[:1]:  # what is not found may be where nobody could look
        for fact in ("layers", "linear_pairs", "bias_before_batchnorm", "asleep", "values_per_channel"):
            if not getattr(facts, fact):
                setattr(facts, fact, None)
                facts.unknown[fact] = f"{name or 'the module'} could not be looked at: {why}"


def _of_calls(facts: Facts, module: nn.Module, seen: Inspection, functions: FunctionRecord) -> None:
    if seen.output is not None:
        last = set(seen.output.parameters(recurse=False))
        facts.output = tuple(name for name, parameter in matrices(module).items() if parameter in last)
    chosen = [name for each, name in seen.names.items() if name and is_activation(each)]
    tags = layer_names(module, chosen)
    layers = {each: tags[seen.names[each]] for each in seen.order if seen.names[each] in tags}
    places = {name: seen.places.get(each, 0) for each, name in layers.items()} | functions.places
    kinds = functions.kinds.items()
    facts.layers = tuple(sorted(places, key=lambda name: places[name]))
    facts.bounded = (*(name for each, name in layers.items() if is_tanh(each)), *(n for n, k in kinds if k == "tanh"))
    facts.rectified = (*(name for each, name in layers.items() if is_relu(each)), *(n for n, k in kinds if k == "relu"))
    facts.signals = {tag: seen.signals[each] for each, tag in layers.items() if _keeps_signal(each, seen)}
    facts.signals |= functions.signals
    facts.way_around = functions.way_around
    positions = {name: seen.positions[each] for each, name in layers.items() if each in seen.positions}
    facts.positions = positions | functions.positions
    facts.normalises = seen.normalises
    facts.final = tuple(layers[each] for each in seen.final if each in layers)
    normalised = [seen.after_normalisation(each) for each in layers]
    normalised += [name in functions.normalised for name in functions.kinds]
    facts.before_normalised = bool(normalised) and all(normalised)
    facts.linear_pairs = tuple(seen.linear_pairs)
    facts.bias_before_batchnorm = tuple(seen.bias_before_batchnorm)
    facts.values_per_channel, facts.batchnorm_momentum = seen.values_per_channel, seen.momentum
    facts.dropout = max(seen.dropout(), functions.dropout)
    if facts.unreached is not None:
        facts.unused = tuple(name for name in facts.unreached if not seen.ran(name))
        facts.unreached = tuple(name for name in facts.unreached if name not in facts.unused)
    asleep: dict[str, list[str]] = {"fault": [], "purpose": [], "dropout": []}
    for name, each in seen.asleep.items():
        if not isinstance(each, _BatchNorm):
            asleep["dropout"].append(name)
        elif each.running_mean is not None and each.running_var is not None:
            trained = any(parameter.requires_grad for parameter in each.parameters())
            fresh = not bool(each.running_mean.any()) and bool((each.running_var == 1).all())
            asleep["fault" if trained and (fresh or name in seen.awake) else "purpose"].append(name)
    facts.asleep, facts.asleep_on_purpose, facts.dropouts_asleep = (tuple(each) for each in asleep.values())


def _keeps_signal(module: nn.Module, seen: Inspection) -> bool:
    return module in seen.signals and not isinstance(module, nn.Sigmoid)


def of_loss(facts: Facts, record: LossRecord, series: Numbers) -> None:
    """Fill in which loss it is, and the loss of a constant guess."""
    graph, targets = record.graph, record.targets
    if graph is None:
        return
    facts.loss, facts.activation_before_loss = graph.kind, graph.activation
    if graph.kind == "likelihood":  # a binary cross-entropy on probabilities, whose sigmoid is right
        facts.loss, facts.activation_before_loss = "bce", None
    facts.targets, facts.targets_vary, facts.outside = targets.scale(), targets.vary, targets.outside
    if targets.each_other:
        return  # another minibatch's size is another task
    facts.loss_scale = targets.loss_scale()
    if facts.loss_scale is None:
        return  # other terms are in the number
    facts.classes = targets.classes
    counted = targets.constant_guess(graph)
    known = series.get("baseline/unigram")
    guess = next(iter(known.values())) if known else counted
    facts.constant_guess = guess if guess and math.isfinite(guess) else None
    first = series.get("train/loss", {}).get(0)
    if facts.constant_guess and first is not None and graph.kind == "cross_entropy":
        facts.pretrained = first < 0.5 * facts.constant_guess * facts.loss_scale


def _optimizer(optimizer: torch.optim.Optimizer) -> OptimizerFacts:
    groups = optimizer.param_groups
    decay = max(float(group.get("weight_decay", 0.0)) for group in groups)
    lr, momentum = float(groups[0]["lr"]), float(groups[0].get("momentum") or 0.0)
    return OptimizerFacts(type(optimizer).__name__, lr, momentum, decay)
