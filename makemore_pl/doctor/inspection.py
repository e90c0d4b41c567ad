"""Inspects a module while it runs: which layer follows which, in which mode they are, and what they get."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

from makemore_pl.doctor.activation_graph import place_of
from makemore_pl.doctor.linear_rows import Row, lengthened, merged_pairs, only_linear, readers_of
from makemore_pl.doctor.minibatch import positions_of
from makemore_pl.module_copy import Hook

NORMALISATIONS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
LINEAR = (nn.Linear, _ConvNd)
TRANSPARENT = (nn.Identity, nn.Flatten, nn.Unflatten, _DropoutNd)
"""Modules after which a linear layer's output is still linear in its input."""


class Inspection:
    """Hooks on every module from `open` to `close`. They record what the rules need from the first calls.

    What a hook raises, as tensors do inside a transform of torch.func, is kept in `failures` and reaches nobody.

    Args:
        root: the module to inspect. Names are qualified names within it.
        hidden: modules that take no hooks, and why.
        aside: whether the call that is running is none of the training's own.
    """

    def __init__(
        self, root: nn.Module, hidden: Mapping[nn.Module, str] | None = None, aside: Callable[[], bool] = lambda: False
    ) -> None:
        self.root, self._aside, hidden = root, aside, hidden or {}
        self.names = {module: name for name, module in root.named_modules() if module not in hidden}
        self.order: list[nn.Module] = []
        """Modules in the order of their first call."""
        self.first_input: Tensor | None = None
        """What the first layer with parameters gets."""
        self.first_layer: nn.Module | None = None
        self.follows: dict[nn.Module, nn.Module] = {}
        """Module -> the module whose output was its input in the first call."""
        self.linear_pairs: list[tuple[str, str]] = []
        self.values_per_channel: dict[str, int] = {}
        self.signals: dict[nn.Module, float] = {}
        """Module without parameters -> spread of its first input from example to example, the mean over its numbers."""
        self.asleep: dict[str, nn.Module] = {}
        """BatchNorms and dropouts that ran in eval mode, with gradients on."""
        self.awake: set[str] = set()
        self.without_gradient: dict[nn.Module, None] = {}
        """Modules in training mode that ran under no_grad, in their order."""
        self.cut = False
        """Whether a layer that is trained got what such a module returned."""
        self.failures = {name: hidden[module] for name, module in root.named_modules() if module in hidden}
        """Name of a module -> why it could not be looked at."""
        self.outer: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []
        """Outermost calls, which are not part of another module's call, with their arguments."""
        self.returned: dict[Any, nn.Module] = {}
        """Autograd function -> the module without children whose output it made, in the batch that is running."""
        self.places: dict[nn.Module, int] = {}
        """Module without children -> place of its first call in the forward pass, as autograd counts."""
        self.positions: dict[nn.Module, int] = {}
        """Module without children -> numbers that it gives for each example and unit in its first call."""
        self._made: dict[int, tuple[ReferenceType[Tensor], nn.Module, Row | None, int]] = {}
        """Id of a tensor -> a reference to it, the module that returned it, the row of linear layers that it is in (or
        None), and its version."""
        self._ends: list[Any] = []
        """The autograd functions that made the outputs of modules."""
        self._candidates: dict[tuple[str, str], list[Any]] = {}
        """Pair of layers -> autograd functions that made the output of the first and the input of the second."""
        self._given: dict[nn.Module, Any] = {}
        """Linear layer -> function that made its input, where that is no module's output."""
        self._depth = 0
        self._handles: list[RemovableHandle] = []

    def open(self) -> None:
        self.close()
        for module in self.names:
            self._spare(module, self._hook)

    def _hook(self, module: nn.Module) -> None:
        before, after = partial(self._spared, self._before), partial(self._spared, self._after)
        self._handles.append(module.register_forward_pre_hook(Hook(before), with_kwargs=True))
        self._handles.append(module.register_forward_hook(Hook(after), always_call=True))

    def _spared(self, look: Callable[..., None], module: nn.Module, *passing: Any) -> None:
        if not self._aside():
            self._spare(module, look, *passing)
        else:
            self.failures.setdefault(self.names[module], "it runs inside a transform of torch.func")

    def _spare(self, module: nn.Module, look: Callable[..., None], *passing: Any) -> None:
        """Call it; what it raises must not reach the training."""
        try:
            look(module, *passing)
        except Exception as error:
            self.failures.setdefault(self.names[module], (str(error).splitlines() or [type(error).__name__])[0])

    def close(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        readers = readers_of(self._ends) if self._candidates or self._given else Counter()
        for pair, between in self._candidates.items():
            # if something else reads the tensor too, as a residual connection does, the first layer has its own use
            if pair not in self.linear_pairs and all(readers[each] == 1 for each in between):
                self.linear_pairs.append(pair)
        for first, second in merged_pairs(self._given, self.returned, readers):
            if (names := (self.names[first], self.names[second])) not in self.linear_pairs:
                self.linear_pairs.append(names)
        self._made, self._depth, self._ends, self._candidates, self._given = {}, 0, [], {}, {}
        self.returned = {}

    def forget(self) -> None:
        """Drop the recorded tensors, to free their memory."""
        self.outer, self.first_input, self._made = [], None, {}

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._depth == 0 and len(self.outer) < 4 and torch.is_grad_enabled():
            self.outer.append((module, args, kwargs))
        self._depth += 1
        if not torch.is_grad_enabled():
            if module.training:
                self.without_gradient[module] = None
            return
        x = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        if isinstance(module, (_BatchNorm, _DropoutNd)):
            self._note_mode(module)
        if x is None:
            return
        found = self._made.get(id(x))
        if found and (found[0]() is not x or found[3] != x._version):  # changed in place since, as by F.relu_
            del self._made[id(x)]
            found = None
        if module in self.follows:
            return
        before, row = (found[1], found[2]) if found else (None, None)
        self.cut |= before in self.without_gradient and any(p.requires_grad for p in module.parameters(recurse=False))
        bare = next(module.children(), None) is None
        if bare:
            if module not in self.order:
                self.order.append(module)
                if next(module.parameters(), None) is None and x.is_floating_point() and x.ndim > 1 and len(x) > 1:
                    self.signals[module] = float(x.detach().float().std(0).mean())
            if before is not None:
                self.follows[module] = before
            if self.first_layer is None and next(module.parameters(), None) is not None:
                self.first_layer = module
                self.first_input = x.detach()
        if isinstance(module, _BatchNorm) and module.training and x.ndim > 1:
            self.values_per_channel.setdefault(self.names[module], x.numel() // max(x.size(1), 1))
        if row is not None and only_linear(row, module):
            pair = self.names[row.layer], self.names[module]
            self._candidates.setdefault(pair, [*row.between, x.grad_fn])
        elif not found and isinstance(module, nn.Linear) and x.grad_fn is not None:
            self._given[module] = x.grad_fn

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._depth = max(0, self._depth - 1)
        y = output[0] if isinstance(output, (tuple, list)) and output else output
        if not isinstance(y, Tensor) or y.is_inference():
            return
        if y.grad_fn is not None:
            self._ends.append(y.grad_fn)
        if next(module.children(), None) is not None:
            return
        if y.grad_fn is not None:
            self.returned.setdefault(y.grad_fn, module)
            self.places.setdefault(module, place_of(y.grad_fn))
        if y.ndim > 1:
            self.positions.setdefault(module, positions_of(y))
        row: Row | None = None
        if isinstance(module, (*LINEAR, *TRANSPARENT, _BatchNorm)):
            x = next((each for each in args if isinstance(each, Tensor)), None)
            found = self._made.get(id(x))
            found = found if found and found[0]() is x else None
            row = found[2] if found else None
            if isinstance(module, TRANSPARENT) and found:
                self._made[id(y)] = ref(y), found[1], row, y._version
                return
            if isinstance(module, LINEAR):
                row = lengthened(row, module, x.grad_fn if x is not None else None, y.grad_fn)
        self._made[id(y)] = ref(y), module, row, y._version

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, with the names of modules."""
        names = self.names

        def named(found: Mapping[nn.Module, Any]) -> dict[str, Any]:
            return {names[module]: value for module, value in found.items()}

        return {
            "order": [names[each] for each in self.order],
            "first_layer": None if self.first_layer is None else names[self.first_layer],
            "follows": {name: names[before] for name, before in named(self.follows).items()},
            "linear_pairs": [list(pair) for pair in self.linear_pairs],
            "values_per_channel": dict(self.values_per_channel),
            "signals": named(self.signals),
            "asleep": list(self.asleep),
            "awake": sorted(self.awake),
            "without_gradient": list(named(self.without_gradient)),
            "cut": self.cut,
            "failures": dict(self.failures),
            "places": named(self.places),
            "positions": named(self.positions),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Raises KeyError if the root has not all modules that it had."""
        modules = {name: module for module, name in self.names.items()}

        def found(named: Mapping[str, Any]) -> dict[nn.Module, Any]:
            return {modules[name]: value for name, value in named.items()}

        self.order = [modules[name] for name in state["order"]]
        self.first_layer = None if state["first_layer"] is None else modules[state["first_layer"]]
        self.follows = {module: modules[before] for module, before in found(state["follows"]).items()}
        self.linear_pairs = [(first, second) for first, second in state["linear_pairs"]]
        self.values_per_channel = dict(state["values_per_channel"])
        self.asleep = {name: modules[name] for name in state["asleep"]}
        self.awake, self.cut, self.failures = set(state["awake"]), state["cut"], dict(state["failures"])
        self.without_gradient = found(dict.fromkeys(state["without_gradient"]))
        self.signals, self.places = found(state["signals"]), found(state["places"])
        self.positions = found(state["positions"])

    def look_at_modes(self) -> None:
        """Note which BatchNorms are in eval mode at this moment of the training."""
        for module in self.order:
            if isinstance(module, _BatchNorm):
                self._note_mode(module)

    def _note_mode(self, module: nn.Module) -> None:
        if module.training:
            self.awake.add(self.names[module])
        else:
            self.asleep[self.names[module]] = module

    # what the rules read

    @property
    def begins_normalised(self) -> bool:
        return isinstance(self.first_layer, NORMALISATIONS)

    @property
    def normalises(self) -> bool:
        return any(isinstance(each, NORMALISATIONS) for each in self.order)

    @property
    def begins_with_embedding(self) -> bool:
        return isinstance(self.first_layer, (nn.Embedding, nn.EmbeddingBag))

    @property
    def bias_before_batchnorm(self) -> list[str]:
        return [
            self.names[before]
            for module, before in self.follows.items()
            if isinstance(module, _BatchNorm)
            and isinstance(before, LINEAR)
            and any("bias" in name for name, _ in before.named_parameters())  # .bias may be a parametrization
            and module.training
        ]

    def after_normalisation(self, module: nn.Module) -> bool:
        return isinstance(self.follows.get(module), NORMALISATIONS)

    def ran(self, parameter_name: str) -> bool:
        """Whether the module that holds this parameter was called, or one around it that uses it itself. Under no_grad
        it counts as that where what comes out goes on into the network: a target network's is only compared with.
        """
        name = parameter_name.rpartition(".")[0]
        owner = next((module for module, known in self.names.items() if known == name), None)
        if owner is None:  # it came later, or is hidden
            return True
        ran = owner in self.order or (self.cut and owner in self.without_gradient)
        return ran or owner is self.root or next(owner.children(), None) is not None

    @property
    def momentum(self) -> dict[str, float]:
        """BatchNorm -> weight of a new batch in its running statistics; one over their number where it is None."""
        found = [each for each in self.order if isinstance(each, _BatchNorm) and self.names[each] in self.awake]
        return {self.names[each]: each.momentum or 0.0 for each in found if each.track_running_stats}

    @property
    def output(self) -> nn.Module | None:
        """The last layer that has parameters of its own."""
        return next((m for m in reversed(self.order) if next(m.parameters(recurse=False), None) is not None), None)

    @property
    def final(self) -> list[nn.Module]:
        """Modules after the last one that has parameters."""
        last = [place for place, each in enumerate(self.order) if next(each.parameters(), None) is not None]
        return self.order[last[-1] + 1 :] if last else []

    def dropout(self) -> float:
        """The largest share of activations that a dropout in training mode drops."""
        return max((m.p for m in self.order if isinstance(m, _DropoutNd) and self.names[m] in self.awake), default=0.0)
