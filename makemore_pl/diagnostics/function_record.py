"""Numbers of activation functions that are no modules, such as torch.relu, which ActivationStats can't hook."""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.tag_names import layer_names
from makemore_pl.doctor.activation_graph import (
    ActivationFunction,
    activation_functions,
    dropout_function,
    has_way_around,
    place_of,
)
from makemore_pl.doctor.inspection import Inspection
from makemore_pl.doctor.minibatch import positions_of

RELU_OF_GAUSSIAN = 0.584
"""Standard deviation of relu of a standard Gaussian."""


class FunctionRecord:
    """The activation functions in the graphs of a training's losses, named by the layers before them.

    They are found in the first batch. A later graph is measured if it has the same ones.
    """

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        """Place among all functions -> name of the layer before it. Of several calls behind one layer the last one."""
        self.kinds: dict[str, str] = {}
        self.places: dict[str, int] = {}
        """Name -> place in the forward pass, as autograd counts."""
        self.positions: dict[str, int] = {}
        """Name -> numbers for each example and unit."""
        self.normalised: set[str] = set()
        """Names of those that follow a normalisation."""
        self.signals: dict[str, float] = {}
        """Name -> spread from example to example at the start, the mean over its numbers."""
        self.dropout = 0.0
        """The largest share that a dropout drops, modules included."""
        self.way_around = False
        """Whether ways through different numbers of layers join."""
        self._all: list[str] = []
        """Their kinds."""
        self._values: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self.fetched: list[str] = []
        """Tags of the numbers that `stacked` has given last."""

    def find(self, loss: Tensor, seen: Inspection, modules: Collection[nn.Module]) -> None:
        """In the first batch, before backward.

        Args:
            modules: activation modules that are measured elsewhere, in their first call.
        """
        self.dropout, self.way_around = dropout_function(loss), has_way_around(loss)
        functions = activation_functions(loss, seen.returned)
        self._all = [each.kind for each in functions]
        mine: dict[str, int] = {}
        names = layer_names(seen.root, {seen.names[each.module] for each in functions if each.module is not None})
        left = set(modules)
        for place, each in enumerate(functions):
            maker = seen.returned.get(each.node)
            if maker in left:
                left.remove(maker)
            elif each.result is not None:
                name = names[seen.names[each.module]] if each.module is not None else f"{each.kind} {place + 1}"
                mine[name] = place
        self.names = {place: name for name, place in mine.items()}
        for place, name in self.names.items():
            self._describe(name, functions[place])

    def _describe(self, name: str, function: ActivationFunction) -> None:
        x = function.result
        assert x is not None
        self.kinds[name], self.places[name] = function.kind, place_of(function.node)
        if function.normalised:
            self.normalised.add(name)
        if x.ndim > 1:
            self.positions[name] = positions_of(x)
            if function.kind != "sigmoid" and len(x) > 1 and bool(x.any()):
                self.signals[name] = float(x.float().std(0).mean())

    def read(self, loss: Tensor) -> None:
        """In a watched batch, before backward."""
        if not self.names:
            return
        self.let_go()
        functions = activation_functions(loss, {})
        if [each.kind for each in functions] != self._all:
            return
        for place, name in self.names.items():
            self._measure(name, functions[place])

    @torch.no_grad()
    def _measure(self, name: str, function: ActivationFunction) -> None:
        x, values = function.result, self._values
        if x is None:
            return
        spread = statistics.std(x)
        values[f"activation_std/{name}"] = spread
        if function.kind == "relu":  # where all is zero, nothing is known of what went in
            spread = torch.where(spread > 0, spread / RELU_OF_GAUSSIAN, torch.nan)
        values[f"preactivation_std/{name}"] = spread
        if function.kind == "tanh":
            values[f"saturation/{name}"] = statistics.saturation(x)
        if function.unit_axis is not None and function.kind == "relu":
            stuck = statistics.stuck_units(x, torch.finfo(torch.float32).tiny, function.unit_axis)
            values[f"stuck_units/{name}"] = stuck
        if function.unit_axis is not None and function.kind == "tanh":
            values[f"dead_units/{name}"] = statistics.dead_units(x, axis=function.unit_axis)
        self._handles.append(function.node.register_prehook(partial(self._arrive, name)))

    @torch.no_grad()
    def _arrive(self, name: str, gradients: tuple[Tensor | None, ...]) -> None:
        if gradients[0] is not None:
            self._values[f"activation_grad_std/{name}"] = statistics.std(gradients[0])

    def stacked(self) -> Tensor | None:
        """The numbers of the batch, one-dimensional, on their device; None where there is none."""
        self.let_go()
        self.fetched, values = list(self._values), list(self._values.values())
        self._values = {}
        return torch.stack(values) if values else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the first batch."""
        plain = ("names", "kinds", "places", "positions", "signals", "dropout", "way_around")
        return {name: getattr(self, name) for name in plain} | {"normalised": sorted(self.normalised), "all": self._all}

    def restore(self, state: dict[str, Any]) -> None:
        self.names, self.kinds, self.places = dict(state["names"]), dict(state["kinds"]), dict(state["places"])
        self.positions, self.signals, self.dropout = dict(state["positions"]), dict(state["signals"]), state["dropout"]
        self.way_around = state["way_around"]
        self.normalised, self._all = set(state["normalised"]), list(state["all"])

    def let_go(self) -> None:
        while self._handles:
            self._handles.pop().remove()
