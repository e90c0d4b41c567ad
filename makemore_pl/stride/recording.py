"""Records a step over many minibatches as one CUDA graph, and replays it.

A graph always reads and writes the tensors that it was recorded with. So each call first copies its arguments into
these.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from makemore_pl.stride import torch_internals
from makemore_pl.stride.compiling import CompiledScan, CompilingFailed, Scan, check, one_by_one, surroundings

Record = Callable[[Callable[[], list[Tensor]], torch.device], tuple[list[Tensor], Callable[[], None]]]
"""Runs a function; returns the tensors of its result, and a function that runs it again into the same tensors."""
_last: dict[str, CompiledScan] = {}
"""The last recording. It takes the memory of a whole call, so there is only one."""


def cuda_graph(function: Callable[[], list[Tensor]], device: torch.device) -> tuple[list[Tensor], Callable[[], None]]:
    """Record by torch.cuda.graph."""
    here = torch.cuda.current_stream(device)
    beside = torch.cuda.Stream(device)
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        function()  # the first call of a library initializes it, which can't be recorded
    here.wait_stream(beside)
    gc.collect()  # what is collected during the recording could free memory or events of CUDA, which would break it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return result, graph.replay


def recorded_scan(scan: Scan, record: Record = cuda_graph) -> CompiledScan:
    """The loop of a step over the first axis of xs as one recorded call: (carry, xs) -> (leaves of the last carry, ys).

    The leaves are the recording's own tensors, which the next call overwrites.

    Raises:
        CompilingFailed: the step can't be recorded.
    """
    device = torch_internals.leaves(scan.carry)[0].device
    key = repr((scan.name, surroundings(device)))
    if key not in _last:
        _last.clear()
        try:
            call = _recorded(scan, record, device)
            check(call, scan)
        except Exception as error:  # CUDA raises many types for what can't be recorded
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            raise CompilingFailed(
                f"Recording the steps failed ({type(error).__name__}: {reason}): use trainer.engine=eager."
            ) from error
        _last[key] = call
    return _last[key]


def _recorded(scan: Scan, record: Record, device: torch.device) -> CompiledScan:
    tensors, unflatten = torch_internals.flatten((scan.carry, scan.xs))
    inputs = [tensor.clone() for tensor in tensors]
    carry, xs = unflatten(inputs)

    @torch.no_grad()
    def loop() -> list[Tensor]:
        return one_by_one(scan.step, carry, xs)

    (*leaves, ys), replay = record(loop, device)

    def call(carry: Any, xs: Any) -> tuple[list[Tensor], Tensor]:
        torch_internals.foreach_copy_(inputs, [*torch_internals.leaves(carry), *torch_internals.leaves(xs)])
        replay()
        return leaves, ys.clone()

    return call
