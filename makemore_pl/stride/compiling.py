"""Compiles a step over a stride of minibatches ahead of time, and keeps what it compiled.

torch.compile takes 10 s in each new process even with a warm cache, because inductor can't cache a graph with a scan
in it. A package of AOTInductor loads in milliseconds (docs/adr/0005).
"""

import hashlib
import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch._C._aoti import AOTIModelPackageLoader
from torch.utils import _pytree as pytree

from makemore_pl.stride.container import Container

log = logging.getLogger(__name__)

VERSION = 2
"""Of what this file makes of a graph."""
INDUCTOR = {
    "aot_inductor.precompile_headers": False,  # 12 s and 300 MB to spare 4 s of a later compile
    "aot_inductor.enable_line_tables": False,  # for debuggers, as the next
    "aot_inductor.enable_frame_pointer": False,
    "cpp.vec_isa_ok": True,  # else a program with vector code is compiled and loaded first, 4 s; what fails says so
}
Run = Callable[[Any, Any], tuple[list[Tensor], Tensor]]
Package = Callable[[list[Tensor]], list[Tensor]]
_loaded: dict[str, Package] = {}
_keys: dict[str, str] = {}


def compiled_scan(name: str, step: Callable[..., Any], carry: Any, xs: Any) -> Run:
    """`step(*carry, *x) -> (*carry, y)` over the first axis of xs, as one compiled call `(carry, xs) -> (leaves, ys)`.

    The leaves are those of the last carry.

    Args:
        name: tells apart whatever would give another graph; asked first, so that a process traces each once.
        carry, xs: tuples of (dicts of) tensors, of the shapes and devices that the calls will have.

    Raises:
        ValueError: where compiling fails.
    """
    name = repr((name, surroundings()))
    if name not in _keys:
        leaves, x_leaves = pytree.tree_leaves(carry), pytree.tree_leaves(xs)
        graph = _trace(step, carry, pytree.tree_map(lambda each: each[0], xs))
        _keys[name] = _key(graph, (*leaves, *x_leaves))
        if _keys[name] not in _loaded:
            _loaded[_keys[name]] = _load(_keys[name], graph, leaves, x_leaves)
    package = _loaded[_keys[name]]

    def run(carry: Any, xs: Any) -> tuple[list[Tensor], Tensor]:
        *leaves, ys = package([*pytree.tree_leaves(carry), *pytree.tree_leaves(xs)])
        return leaves, ys

    return run


def _trace(step: Callable[..., Any], carry: Any, x: Any) -> torch.fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    leaves, spec = pytree.tree_flatten((*carry, *x))

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        *new, y = step(*pytree.tree_unflatten(tensors, spec))
        return (*pytree.tree_leaves(new), y)

    graph: torch.fx.GraphModule = make_fx(flat)(*leaves)
    return graph


def _key(graph: torch.fx.GraphModule, tensors: tuple[Tensor, ...]) -> str:
    shapes = [(tuple(tensor.shape), str(tensor.dtype), str(tensor.device)) for tensor in tensors]
    return hashlib.sha256(repr((VERSION, INDUCTOR, graph.code, shapes, surroundings())).encode()).hexdigest()[:32]


def surroundings() -> tuple[Any, ...]:
    """What the generated code depends on beside the graph: inductor splits loops by the number of threads."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = (platform.machine(), torch.backends.cpu.get_cpu_capability())
    return torch.__version__, *cpu, *devices, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()


def _load(key: str, graph: torch.fx.GraphModule, leaves: list[Tensor], xs: list[Tensor]) -> Package:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    # beside inductor's own cache, under the same trust: what is in it gets executed
    path = Path(cache_dir()) / "makemore_pl" / f"{key}.pt2"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # several jobs of a sweep want the same package at the same time
        if not path.exists():
            log.info("Compiling the unwatched steps, once for this shape.")
            started = time.perf_counter()
            temporary = path.with_suffix(f".{platform.node()}.part.pt2")
            try:
                _compile(graph, leaves, xs, temporary)
            except Exception as error:  # inductor raises what its compiler stumbles over
                reason = (str(error).strip() or "no reason given").splitlines()[0]
                raise ValueError(
                    f"Compiling the steps failed ({type(error).__name__}: {reason}): use trainer.engine=eager."
                ) from error
            temporary.replace(path)
            log.info("Compiled in %.0f s.", time.perf_counter() - started)
    if leaves[0].is_cpu:
        return Container(path)
    # aoti_load_package would import half of inductor, 0.7 s, for the same; and parse a description at each call, 0.2 ms
    run: Package = AOTIModelPackageLoader(str(path), "model", False, 1, leaves[0].get_device()).boxed_run
    return run


class _Scan(nn.Module):
    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, leaves: list[Tensor], xs: list[Tensor]) -> Any:
        from torch._higher_order_ops.scan import scan

        def body(carry: list[Tensor], x: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            *carry, y = self.graph(*carry, *x)
            # scan wants no output to be an input, as a parameter without gradient would be
            return [tensor.clone() for tensor in carry], y

        return scan(body, leaves, xs)


def _compile(graph: torch.fx.GraphModule, leaves: list[Tensor], xs: list[Tensor], path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    with torch.no_grad():
        program = torch.export.export(_Scan(graph), (leaves, xs), strict=False)
    aoti_compile_and_package(program, package_path=str(path), inductor_configs=INDUCTOR)
