"""One tap for all who look: hooks on modules, each module once, that show readers what passes through.

A reader reduces what it sees to a few numbers at once, so the tap copies nothing but gradients: those of several
backwards add up, and their sum is known at the end only.
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
        """unit_axis: the dimension in which the units lie, None where nobody can tell."""

    def leave_out(self, what: str, reason: object) -> None:
        """What was to be measured and could not be."""


@dataclass
class Passage:
    """What went through one module since the tap was opened."""

    readers: list[tuple[str, Reader]]
    calls: int = 0
    """In training mode; recomputation by activation checkpointing does not count."""
    evaluations: int = 0
    """In eval mode."""
    transformed: int = 0
    """Inside a transform of torch.func, whose tensors can't be taken out."""
    shown: bool = False
    with_gradient: bool = False
    """Whether the call that was shown was one with gradient."""
    number: int = 0
    """Of the last call whose output can get a gradient."""
    gradient: Tensor | None = None
    """Sum over the backwards so far."""
    source: tuple[bool, int] = (True, -1)
    """Where the gradient comes from: outside of Lightning's backward or not, and the number of the call."""
    showing: bool = False
    unit_axis: int | None = None
    shape: torch.Size | None = None


@dataclass
class Tap:
    """Hooks from `open` to `close`. Only training mode counts; readers are shown one call of each module.

    That is the first call with gradient, or the first of all where none has one: later calls of a module that is used
    again, under `no_grad`, or repeated by activation checkpointing do not displace it. Gradients are those of the first
    call that gets any.
    """

    passages: dict[nn.Module, Passage] = field(default_factory=dict)
    backward: bool = False
    """Whether Lightning's backward is running. Gradients of others, as for a gradient penalty, give way to its."""
    _handles: list[RemovableHandle] = field(default_factory=list)
    _axes: dict[int, tuple["ReferenceType[Tensor]", int]] = field(default_factory=dict)
    """By id of a tensor that a layer of a KNOWN type has returned."""
    _last: tuple[torch.Size, int | None] = (torch.Size(), None)
    """What the last such layer has returned."""

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
        """The gradient of the loss by a module's output, None where none has arrived."""
        return self.passages[module].gradient if module in self.passages else None

    def _hook(self, _: Passage, module: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> None:
        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after))

    def _spare(self, function: Callable[..., None], passage: Passage, *arguments: Any) -> None:
        """Call it; what it raises must not reach the training."""
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
        """Where the units of an input lie: as in the layer it comes from, or in the last one if shapes agree."""
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


# torch has no public way to ask the next two. Should a name go, calls inside a transform are left out with what they
# raise, and a module that is recomputed is said to run twice; its numbers stay right.
_transform = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)
_backward = torch._C._current_graph_task_id if hasattr(torch._C, "_current_graph_task_id") else lambda: -1


def in_transform() -> bool:
    """Whether vmap, jacrev or another transform of torch.func is running."""
    return _transform() is not None


def in_backward() -> bool:
    """Whether autograd is running backward, as when a checkpoint recomputes."""
    return bool(_backward() >= 0)


def first_tensor(value: object) -> Tensor | None:
    """The first tensor in nested tuples, lists and dicts."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((x for each in value if (x := first_tensor(each)) is not None), None)
    return value if isinstance(value, Tensor) else None


def dense(x: Tensor) -> Tensor:
    """The same numbers in one plain tensor: the rows of a nested one, all of a sparse or distributed one."""
    whole = getattr(x, "full_tensor", None)  # of a DTensor
    x = whole() if whole else x
    if x.is_nested:
        return torch.cat(list(x.unbind()))
    return x.to_dense() if x.layout != torch.strided else x


def compiled_modules(root: nn.Module) -> set[nn.Module]:
    """Those that torch.compile has taken over by any of its ways, with all that is inside them.

    Compiled code ignores hooks that are added after it was traced (pytorch#117758).
    """
    found: set[nn.Module] = set()
    for module in root.modules():
        if module not in found and _is_compiled(module):
            found.update(module.modules())
    return found


def _is_compiled(module: nn.Module) -> bool:
    # By attribute, not isinstance of OptimizedModule, whose import costs more than a second.
    functions = [getattr(type(module), name, None) for name in ("forward", "training_step")]
    functions += [value for value in vars(module).values() if callable(value)]
    return module._compiled_call_impl is not None or any(
        hasattr(each, "_torchdynamo_orig_callable") and not hasattr(each, "_torchdynamo_disable") for each in functions
    )


def select(
    module: nn.Module, wanted: Callable[[nn.Module], bool] = lambda _: True, pattern: str | None = None
) -> dict[str, nn.Module]:
    """Submodules by qualified name that are wanted and have a name in which `pattern` (a regex) is found.

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
