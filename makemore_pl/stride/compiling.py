"""Compiles the loop of a step over many minibatches ahead of time into a package, loads it and checks it.

torch.compile would take 10 s in each new process even with a warm cache, because inductor can't cache a graph that has
a scan. A package of AOTInductor loads in milliseconds (docs/adr/0005).
"""

import hashlib
import logging
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from makemore_pl.stride import package_cache, torch_internals
from makemore_pl.stride.torch_internals import Package

log = logging.getLogger(__name__)

FORMAT = 3
"""Part of every key. Raise it when the code below changes the program that it makes from a graph."""
CompiledScan = Callable[[Any, Any], tuple[list[Tensor], Tensor]]
_packages: dict[str, Package] = {}
_keys: dict[str, str] = {}
_failures: dict[str, str] = {}


class CompilingFailed(ValueError):  # noqa: N818 (the name says what happened)
    """Raised if the steps can't be compiled here, or if the compiled steps disagree with the eager ones."""


class Scan(NamedTuple):
    """A pure step and the arguments that its compiled loop will get."""

    name: str
    """Scans with the same name must have the same graph. A process traces each name once."""
    step: Callable[..., Any]
    """(*carry, *x) -> (*carry, y)"""
    carry: Any
    """What a step passes to the next one: a tuple of dicts of tensors."""
    xs: Any
    """What each step gets: a tuple of tensors or dicts of tensors, with one entry a step along the first axis."""
    trial_xs: Any
    """The same for the trial of a new package, with learning rates at which rounding errors can't grow."""


def compiled_scan(scan: Scan) -> CompiledScan:
    """The loop of a step over the first axis of xs as one compiled call: (carry, xs) -> (leaves of the last carry, ys).

    Raises:
        CompilingFailed: compiling failed now, or at an earlier attempt of this process.
    """
    name = repr((scan.name, surroundings(torch_internals.leaves(scan.carry)[0].device)))
    if name in _failures:
        raise CompilingFailed(_failures[name])
    if name not in _keys:
        try:
            _keys[name] = _ready_package(scan)
        except Exception as error:  # inductor raises many types
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            _failures[name] = (
                f"Compiling the steps failed ({type(error).__name__}: {reason}): use trainer.engine=eager."
            )
            raise CompilingFailed(_failures[name]) from error
    return _call_of(_packages[_keys[name]])


def forget() -> None:
    """Forget all packages, as in a new process; the next one is loaded from the cache."""
    for memory in (_packages, _keys, _failures):
        memory.clear()


def _call_of(package: Package) -> CompiledScan:
    def run(carry: Any, xs: Any) -> tuple[list[Tensor], Tensor]:
        *leaves, ys = package([*torch_internals.leaves(carry), *torch_internals.leaves(xs)])
        return leaves, ys

    return run


def _ready_package(scan: Scan) -> str:
    """Load the package of a scan into _packages, after compiling it if needed; returns its key there."""
    carry, x_leaves = torch_internals.leaves(scan.carry), torch_internals.leaves(scan.xs)
    graph = _trace(scan)
    device = carry[0].device
    key = _key(graph, [*carry, *x_leaves])
    if key in _packages:
        return key
    with package_cache.locked(key) as directory:
        path = package_cache.find(directory, key)
        if path is None:
            log.info("Compiling the steps, once for a network of this shape.")
            started = time.perf_counter()
            new = directory / f"{key}.{platform.node()}-{os.getpid()}.part.pt2"
            try:
                with package_cache.inductor_inside(directory):
                    _compile(graph, carry, x_leaves, new)
                check(_call_of(torch_internals.load_package(new, device)), scan)
                path = package_cache.keep(key, new)
            finally:
                new.unlink(missing_ok=True)
            log.info("Compiled in %.0f s.", time.perf_counter() - started)
        _packages[key] = torch_internals.load_package(path, device)
    return key


def _trace(scan: Scan) -> torch.fx.GraphModule:
    xs, unflatten_xs = torch_internals.flatten(scan.xs)
    leaves, unflatten = torch_internals.flatten((*scan.carry, *unflatten_xs([sequence[0] for sequence in xs])))

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        *new, y = scan.step(*unflatten(list(tensors)))
        return (*torch_internals.leaves(new), y)

    return torch_internals.trace(flat, leaves)


def _key(graph: torch.fx.GraphModule, tensors: list[Tensor]) -> str:
    shapes = [(tuple(tensor.shape), str(tensor.dtype), str(tensor.device)) for tensor in tensors]
    parts = (FORMAT, torch_internals.INDUCTOR, graph.code, shapes, surroundings(tensors[0].device))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def surroundings(device: torch.device) -> tuple[Any, ...]:
    """What the generated code depends on beside the graph: inductor splits loops by the number of threads, say."""
    machine = (platform.machine(), torch.backends.cpu.get_cpu_capability())
    # a run on the CPU must not ask for GPUs, because that would initialize CUDA
    gpu = None if device.type == "cpu" else (torch.cuda.get_device_name(device), torch.get_float32_matmul_precision())
    return torch.__version__, *machine, gpu, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()


class _Loop(nn.Module):
    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, carry: list[Tensor], xs: list[Tensor]) -> Any:
        def body(carry: list[Tensor], x: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            *carry, y = self.graph(*carry, *x)
            # scan refuses an output that is an input, as a parameter without gradient would be
            return [tensor.clone() for tensor in carry], y

        return torch_internals.scan(body, carry, xs)


def _compile(graph: torch.fx.GraphModule, carry: list[Tensor], xs: list[Tensor], path: Path) -> None:
    with torch.no_grad():
        program = torch.export.export(_Loop(graph), (carry, xs), strict=False)
    torch_internals.compile_package(program, path)


@torch.no_grad()
def check(call: CompiledScan, scan: Scan) -> None:
    """Raises ArithmeticError if the one call and the step itself, called for each minibatch, give different numbers."""
    leaves, ys = call(scan.carry, scan.trial_xs)
    for ours, theirs in zip((*leaves, ys), one_by_one(scan.step, scan.carry, scan.trial_xs), strict=True):
        ours, theirs = ours.double(), theirs.double()
        error, size = (ours - theirs).norm().item(), theirs.norm().item()
        # steps that are not finite raise elsewhere, with the name of the layer
        if math.isfinite(size) and not error <= 1e-2 * size + 1e-6:
            raise ArithmeticError(f"they differ from the eager ones by {error:.2g} in {size:.2g}")


def one_by_one(step: Callable[..., Any], carry: Any, xs: Any) -> list[Tensor]:
    """The leaves of the last carry, and the ys, of a step over the first axis of xs."""
    tensors, unflatten = torch_internals.flatten(xs)
    ys = []
    for i in range(len(tensors[0])):
        *carry, y = step(*carry, *unflatten([tensor[i] for tensor in tensors]))
        ys.append(y)
    return [*torch_internals.leaves(tuple(carry)), torch.stack(ys)]
