"""Every name of torch that comes without a promise, and that the stride needs: looked up here and nowhere else.

Tested with torch 2.13 and 2.14. Each function imports what it needs when it is called, so that a torch that lacks a
name still trains: what only compiling needs raises ImportError or AttributeError, which compiling.py turns into
"compiling failed" and `trainer.engine=auto` into the eager engine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Package = Callable[[list[Tensor]], list[Tensor]]

# The multi-tensor operations of torch.optim: one call for all parameters instead of one each, 0.1 ms less a step. When
# they go: loops over the tensors.
foreach_norm = torch._foreach_norm
foreach_add_ = torch._foreach_add_
foreach_copy_ = torch._foreach_copy_

INDUCTOR = {
    "aot_inductor.precompile_headers": False,  # 12 s and 300 MB for a later compile that is 4 s faster
    "aot_inductor.enable_line_tables": False,  # only debuggers read them
    "aot_inductor.enable_frame_pointer": False,  # only profilers read it
    "cpp.vec_isa_ok": True,  # False compiles and loads a program with vector code first, 4 s
}
"""How packages are compiled. They only save time: one that this torch does not know is left out."""


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of nested tuples and dicts."""
    from torch.utils import _pytree

    return _pytree.tree_leaves(tree)


def flatten(tree: Any) -> tuple[list[Tensor], Callable[[list[Any]], Any]]:
    """The leaves, and the way back.

    torch.utils._pytree orders them as torch.export does. When it goes: torch.utils.pytree or optree.
    """
    from torch.utils import _pytree

    tensors, spec = _pytree.tree_flatten(tree)
    return tensors, lambda new: _pytree.tree_unflatten(new, spec)


def trace(function: Callable[..., Any], tensors: list[Tensor]) -> torch.fx.GraphModule:
    """The operations of a function of tensors, those of gradients formed inside of it too.

    torch.export alone can't trace torch.func.grad. When make_fx goes: its successor as the tracer of torch.func.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    graph: torch.fx.GraphModule = make_fx(function)(*tensors)
    return graph


def scan(body: Callable[..., Any], carry: list[Tensor], xs: list[Tensor]) -> Any:
    """The loop over the first axis of xs, as one graph however long it is. When it moves: torch.scan, so announced."""
    from torch._higher_order_ops.scan import scan as torch_scan

    return torch_scan(body, carry, xs)


def compile_package(program: torch.export.ExportedProgram, path: Path) -> None:
    """A package of AOTInductor. When it goes: torch.compile, which takes 10 s in every process (docs/adr/0005)."""
    from torch._inductor import aoti_compile_and_package, list_options

    known = list_options()
    options = {name: value for name, value in INDUCTOR.items() if name in known}
    aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def load_package(path: Path, device: torch.device) -> Package:
    """The compiled function of a package.

    torch._inductor.aoti_load_package is the documented loader around this one. It imports half of inductor, 0.7 s in
    each process, and parses a description of the arguments at each call, 0.2 ms. When this one goes: take that.
    """
    from torch._C._aoti import AOTIModelPackageLoader

    index = -1 if device.type == "cpu" else device.index
    run: Package = AOTIModelPackageLoader(str(path), "model", False, 1, index).boxed_run
    return run
