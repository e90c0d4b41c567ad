"""One tap for all callbacks: it hooks each module once and shows the module's tensors to all readers.

A reader at once reduces a tensor to a few numbers, so the tap does not copy inputs and outputs. It copies gradients,
because those of several backward passes add up and their sum is known only at the end.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from makemore_pl.diagnostics.unit_axis import KNOWN, unit_axis_of


class Reader(Protocol):
    """Looks at modules. Tensors are detached, and valid only until the call returns; it runs under no_grad."""

    reads_gradients: bool
    """Whether it will ask for gradients of outputs."""

    def see_input(self, layer: str, module: nn.Module, x: Tensor) -> None: ...

    def see_output(self, layer: str, module: nn.Module, x: Tensor, unit_axis: int | None) -> None:
        """unit_axis: the dimension that holds the units; None if it is not known."""

    def leave_out(self, what: str, reason: object) -> None:
        """Say that something could not be measured, and why."""


@dataclass
class Passage:
    """What went through one module since the tap was opened."""

    readers: list[tuple[str, Reader]]
    calls: int = 0
    """Calls in training mode, without those that activation checkpointing repeats."""
    evaluations: int = 0
    """Calls in eval mode."""
    transformed: int = 0
    """Calls inside a transform of torch.func, whose tensors can't be measured."""
    shown: bool = False
    with_gradient: bool = False
    """Whether gradients were enabled in the call that was shown."""
    number: int = 0
    """Calls so far whose output can get a gradient."""
    gradient: Tensor | None = None
    """Sum over the backward passes so far."""
    source: tuple[bool, int] = (True, -1)
    """Where the gradient comes from: whether from outside of Lightning's backward, and the number of the call."""
    showing: bool = False
    unit_axis: int | None = None
    shape: torch.Size | None = None


@dataclass
class Tap:
    """Hooks that are in place from `open` to `close`. Readers are shown one call of each module, in training mode.

    This is the first call with gradients enabled, or the first of all if there is no such call. Later calls, calls
    under `no_grad` and calls repeated by activation checkpointing do not replace it. Gradients are those of the first
    call whose output gets a gradient.
    """

    passages: dict[nn.Module, Passage] = field(default_factory=dict)
    backward: bool = False
    """Whether Lightning's backward is running. Its gradients replace those of others, as of a gradient penalty."""
    _handles: list[RemovableHandle] = field(default_factory=list)
    _axes: dict[int, tuple["ReferenceType[Tensor]", int]] = field(default_factory=dict)
    """Id of a tensor that a layer of a KNOWN type has returned -> the tensor and its unit axis."""
    _last: tuple[torch.Size, int | None] = (torch.Size(), None)
    """Shape and unit axis of what the last such layer has returned."""

    def open(self, root: nn.Module, looking: Iterable[tuple[Reader, Mapping[str, nn.Module]]]) -> None:
        """Hook the modules that readers look at, and, to learn about unit axes, all layers of a KNOWN type in root."""
        self.close()
        for reader, modules in looking:
            for layer, module in modules.items():
                self.passages.setdefault(module, Passage([])).readers.append((layer, reader))
        for module, passage in self.passages.items():
            before, after = partial(self._spare, self._before, passage), partial(self._spare, self._after, passage)
            self._spare(self._hook, passage, module, before, after)
        if self.passages:
            known = (module for module in root.modules() if isinstance(module, KNOWN))
            self._handles += [module.register_forward_hook(self._remember_axis) for module in known]

    def close(self) -> None:
        """Remove the hooks and forget everything."""
        while self._handles:
            self._handles.pop().remove()
        for passage in self.passages.values():
            passage.gradient = None
        self.passages, self._axes, self._last, self.backward = {}, {}, (torch.Size(), None), False

    def gradient(self, module: nn.Module) -> Tensor | None:
        """The gradient of the loss by a module's output; None if none has arrived."""
        return self.passages[module].gradient if module in self.passages else None

    def _hook(self, _: Passage, module: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> None:
        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after))

    def _spare(self, function: Callable[..., None], passage: Passage, *arguments: Any) -> None:
        """Call the function. If it raises, the readers are told, and the training goes on."""
        try:
            function(passage, *arguments)
        except Exception as error:
            for layer, reader in passage.readers:
                reader.leave_out(layer, error)

    def _before(self, passage: Passage, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        passage.showing = False
        if in_transform():
            passage.transformed += 1
        elif not module.training:
            passage.evaluations += 1
        else:
            passage.calls += not in_backward()
            fresh = torch.is_grad_enabled() and not passage.with_gradient
            passage.showing = fresh or not passage.shown
            if passage.showing:
                x = first_tensor((*args, *kwargs.values()))
                passage.shown, passage.with_gradient = True, torch.is_grad_enabled()
                passage.unit_axis = None if x is None else self._axis(x)
                passage.shape = None if x is None else x.shape
                self._show(passage, "input", module, x, lambda r, layer, x: r.see_input(layer, module, x))

    def _after(self, passage: Passage, module: nn.Module, _: object, output: object) -> None:
        if in_transform() or not module.training:
            return
        x = first_tensor(output)
        if passage.showing:
            passage.showing = False
            axis = passage.unit_axis if x is not None and x.shape == passage.shape else None
            axis = axis if x is None or not isinstance(module, KNOWN) else unit_axis_of(module, x)
            self._show(passage, "output", module, x, lambda r, layer, x: r.see_output(layer, module, x, axis))
        repeated = in_backward() and passage.with_gradient and passage.number > 0
        if x is not None and x.requires_grad and not repeated and any(r.reads_gradients for _, r in passage.readers):
            x.register_hook(partial(self._spare, self._arrive, passage, passage.number))
            passage.number += 1

    def _show(
        self, passage: Passage, what: str, module: nn.Module, x: Tensor | None, show: Callable[[Any, str, Tensor], None]
    ) -> None:
        for layer, reader in passage.readers:
            if x is None:
                reader.leave_out(layer, f"there is no tensor in the {what} of a {type(module).__name__}")
                continue
            try:
                with torch.no_grad():
                    show(reader, layer, dense(x.detach()))
            except Exception as error:
                reader.leave_out(layer, error)

    def _arrive(self, passage: Passage, number: int, grad: Tensor) -> None:
        source = not self.backward, number
        with torch.no_grad():
            if passage.gradient is None or source < passage.source:
                passage.gradient, passage.source = grad.detach().clone(), source
            elif source == passage.source:
                passage.gradient = passage.gradient + grad.detach()

    def _axis(self, x: Tensor) -> int | None:
        """The unit axis of an input: that of the layer that returned it, or of the last layer if the shapes agree."""
        if x.is_nested:
            return 1  # (B, j, n), which `dense` makes (all j, n)
        if x.ndim < 2:
            return 0
        found = self._axes.get(id(x))
        if found and found[0]() is x:
            return found[1]
        if x.ndim == 2:
            return 1
        shape, axis = self._last
        return axis if axis is not None and len(shape) == x.ndim and shape[axis] == x.shape[axis] else None

    def _remember_axis(self, module: nn.Module, _: object, output: object) -> None:
        x = first_tensor(output)
        if x is None or in_transform() or x.is_nested:
            return
        if (axis := unit_axis_of(module, x)) is not None:
            self._axes[id(x)] = ref(x), axis
        self._last = x.shape, axis


# torch has no public function for these two questions. If the first name goes, calls inside a transform raise and are
# left out; if the second goes, a recomputed module is reported to run twice. The numbers stay right.
_transform = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)
_backward = torch._C._current_graph_task_id if hasattr(torch._C, "_current_graph_task_id") else lambda: -1


def in_transform() -> bool:
    """Whether vmap, jacrev or another transform of torch.func is running."""
    return _transform() is not None


def in_backward() -> bool:
    """Whether autograd is running a backward pass, as it is when activation checkpointing recomputes a module."""
    return bool(_backward() >= 0)


def first_tensor(value: object) -> Tensor | None:
    """The first tensor in nested tuples, lists and dicts."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((x for each in value if (x := first_tensor(each)) is not None), None)
    return value if isinstance(value, Tensor) else None


def dense(x: Tensor) -> Tensor:
    """The numbers of a nested, sparse or distributed tensor in one ordinary tensor; a nested one gives its rows."""
    whole = getattr(x, "full_tensor", None)  # of a DTensor
    x = whole() if whole else x
    if x.is_nested:
        return torch.cat(list(x.unbind()))
    return x.to_dense() if x.layout != torch.strided else x


def compiled_modules(root: nn.Module) -> set[nn.Module]:
    """The modules that torch.compile has compiled, in any of its ways, and their submodules.

    Compiled code ignores hooks that are added after it was traced (pytorch#117758).
    """
    found: set[nn.Module] = set()
    for module in root.modules():
        if module not in found and _is_compiled(module):
            found.update(module.modules())
    return found


def _is_compiled(module: nn.Module) -> bool:
    # By attribute, because importing OptimizedModule for isinstance takes more than a second.
    functions = [getattr(type(module), name, None) for name in ("forward", "training_step")]
    functions += [value for value in vars(module).values() if callable(value)]
    return module._compiled_call_impl is not None or any(
        hasattr(each, "_torchdynamo_orig_callable") and not hasattr(each, "_torchdynamo_disable") for each in functions
    )


def select(
    module: nn.Module, wanted: Callable[[nn.Module], bool] = lambda _: True, pattern: str | None = None
) -> dict[str, nn.Module]:
    """The submodules that are wanted and whose qualified name contains a match of `pattern` (a regex), by that name.

    A module registered twice appears under its first name.

    Raises:
        ValueError: there is a pattern and it is no regex, or nothing matches.
    """
    try:
        matches = re.compile(pattern or "").search
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    named = {name: submodule for name, submodule in module.named_modules() if name}
    chosen = {name: submodule for name, submodule in named.items() if matches(name) and wanted(submodule)}
    if pattern and not chosen:
        there = [f"{name} ({type(submodule).__name__})" for name, submodule in named.items()]
        more = f" and {len(there) - 20} more" if len(there) > 20 else ""
        raise ValueError(
            f"pattern {pattern!r} matches nothing that can be watched in {type(module).__name__}, "
            f"which has {', '.join(there[:20]) or 'no submodules'}{more}."
        )
    return chosen
