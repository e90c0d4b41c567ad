"""Taps: context managers that own their hooks and record what passes through modules, changing nothing."""

import re
from abc import ABC, abstractmethod
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has taken over this module or one inside it, by any of its ways.

    Compiled code ignores hooks added after it was traced (pytorch#117758), so a tap would stay empty or stale.
    """
    # By attribute, not isinstance of OptimizedModule, whose import costs more than a second.
    for submodule in module.modules():
        forward = vars(submodule).get("forward")
        wrapped = hasattr(forward, "_torchdynamo_orig_callable") and not hasattr(forward, "_torchdynamo_disable")
        if wrapped or submodule._compiled_call_impl is not None:
            return True
    return False


def select(
    module: nn.Module, types: tuple[type[nn.Module], ...] = (), pattern: str | None = None
) -> dict[str, nn.Module]:
    """Submodules by qualified name, of one of `types` and with a name in which `pattern` (a regex) is found.

    A criterion not given lets everything pass. A module registered twice appears under its first name. ValueError if
    nothing matches, if the pattern is not a regex, or if the module is compiled.
    """
    if is_compiled(module):
        raise ValueError(f"{_COMPILED}: watch the module before torch.compile, or without it")
    try:
        matches = re.compile(pattern or "").search
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    named = {name: submodule for name, submodule in module.named_modules() if name}
    chosen = {
        name: submodule
        for name, submodule in named.items()
        if (not types or isinstance(submodule, types)) and matches(name)
    }
    if not chosen:
        wanted = [" or ".join(kind.__name__ for kind in types)] if types else []
        wanted += [f"name matching {pattern!r}"] if pattern else []
        there = [f"{name} ({type(submodule).__name__})" for name, submodule in named.items()]
        more = f" and {len(there) - 20} more" if len(there) > 20 else ""
        raise ValueError(
            f"nothing matched {' with '.join(wanted) or 'any module'} in {type(module).__name__}, "
            f"which has {', '.join(there[:20]) or 'no submodules'}{more}"
        )
    return chosen


class Tap(ABC):
    """Hooks on named modules from `open` to `close`, or for the length of a `with`; both may be called again.

    Only forwards in training mode are recorded. `calls` counts them by name since `open`: 0 means the forward went
    round the module, 2 or more that it was reused, and then the last call is the one recorded. What was recorded stays
    until `clear` or the next `open`. ValueError when there are no modules or one is compiled.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        if not modules:
            raise ValueError("nothing to watch: no modules were given, choose some with select()")
        if compiled := [name for name, module in modules.items() if is_compiled(module)]:
            raise ValueError(f"{_COMPILED}: {', '.join(compiled)}")
        self.modules = dict(modules)
        self.calls = dict.fromkeys(modules, 0)
        self._handles: list[RemovableHandle] = []

    def open(self) -> Self:
        if not self._handles:
            self.clear()
            for name, module in self.modules.items():
                self._handles += self._hook(name, module)
        return self

    def close(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def clear(self) -> None:
        self.calls = dict.fromkeys(self.modules, 0)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _hook(self, name: str, module: nn.Module) -> list[RemovableHandle]: ...


class ActivationTap(Tap):
    """Records by name each module's input, its output and the gradient of the loss with respect to that output.

    `preactivation`, `activation` and `activation_grad` are detached copies, so that in-place operations further on
    cannot change them; of a tuple the first tensor counts. Backward must run before `close`. A forward under `no_grad`
    has no gradient, one recomputed by activation checkpointing may lose it, a GradScaler leaves it scaled.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__(modules)
        self.preactivation: dict[str, Tensor] = {}
        self.activation: dict[str, Tensor] = {}
        self.activation_grad: dict[str, Tensor] = {}
        self._grad_handles: dict[str, RemovableHandle] = {}

    def close(self) -> None:
        super().close()
        for name in self.modules:
            self._forget_grad_hook(name)

    def clear(self) -> None:
        super().clear()
        for name in self.modules:
            self._forget(name)

    def _forget(self, name: str) -> None:
        for recorded in (self.preactivation, self.activation, self.activation_grad):
            recorded.pop(name, None)
        self._forget_grad_hook(name)

    def _forget_grad_hook(self, name: str) -> None:
        if handle := self._grad_handles.pop(name, None):
            handle.remove()

    def _hook(self, name: str, module: nn.Module) -> list[RemovableHandle]:
        def before(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            if module.training:
                # Without its hook an earlier call cannot deliver its gradient, which backward reaches last.
                self._forget(name)
                self.calls[name] += 1
                if (preactivation := _first_tensor((*args, *kwargs.values()))) is not None:
                    self.preactivation[name] = _copy(preactivation)

        def after(_: nn.Module, _args: tuple[object, ...], output: object) -> None:
            if module.training and (activation := _first_tensor(output)) is not None:
                self.activation[name] = _copy(activation)
                if activation.requires_grad:
                    self._grad_handles[name] = activation.register_hook(backward)

        def backward(grad: Tensor) -> None:
            self.activation_grad[name] = _copy(grad)

        return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]


class BatchNormStatistics(NamedTuple):
    """One forward of a BatchNorm: its batch statistics, and its running statistics from before it updated them."""

    batch_mean: Tensor
    """(C,)"""
    batch_var: Tensor
    """(C,), biased, as BatchNorm normalises by it"""
    running_mean: Tensor
    """(C,)"""
    running_var: Tensor
    """(C,)"""
    n: int
    """values per channel in the batch"""


class BatchNormTap(Tap):
    """Records by name the `statistics` of each BatchNorm's last forward.

    One that keeps no running statistics has nothing to compare and is left out. SyncBatchNorm's batch statistics are
    those of this process alone. ValueError, too, when a module is not a BatchNorm.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__(modules)
        for name, module in modules.items():
            if not isinstance(module, _BatchNorm):
                raise ValueError(f"{name} is not a BatchNorm but {type(module).__name__}")
        self.statistics: dict[str, BatchNormStatistics] = {}

    def clear(self) -> None:
        super().clear()
        self.statistics.clear()

    def _hook(self, name: str, module: nn.Module) -> list[RemovableHandle]:
        assert isinstance(module, _BatchNorm)

        def before(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            if not module.training:
                return
            self.calls[name] += 1
            x = _first_tensor((*args, *kwargs.values()))
            if x is None or module.running_mean is None or module.running_var is None:
                return
            x = x.detach()
            x = x if x.dtype == torch.float64 else x.float()
            var, mean = torch.var_mean(x, [dim for dim in range(x.ndim) if dim != 1], correction=0)
            self.statistics[name] = BatchNormStatistics(
                mean, var, _copy(module.running_mean), _copy(module.running_var), x.numel() // max(x.size(1), 1)
            )

        return [module.register_forward_pre_hook(before, with_kwargs=True)]


class ParameterSnapshot:
    """Copies of named parameters as they are now, to see later what was really added to them.

    The only honest measure of an update: lr * grad is one for plain SGD alone. ValueError when there are no parameters.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        if not parameters:
            raise ValueError("nothing to watch: no parameters were given")
        self.parameters = dict(parameters)
        self.before = {name: _copy(parameter) for name, parameter in parameters.items()}

    def updates(self) -> dict[str, Tensor]:
        """Now - before, by name."""
        return {name: parameter.detach() - self.before[name] for name, parameter in self.parameters.items()}


_COMPILED = "hooks added to a compiled module are ignored (pytorch#117758)"


def _first_tensor(value: object) -> Tensor | None:
    if isinstance(value, (tuple, list)):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return value if isinstance(value, Tensor) else None


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
