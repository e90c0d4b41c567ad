"""All private names of torch that stride/ needs. No other file of stride/ uses private names of torch.

Tested with torch 2.13 and 2.14. Each function imports its names when it is called, so a torch that lacks one of them
can still train: if only compiling needs the name, compiling.py reports "compiling failed", and `trainer.engine=auto`
runs the steps eagerly.
"""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

Package = Callable[[list[Tensor]], list[Tensor]]

# The multi-tensor operations of torch.optim. One call for all parameters saves 0.1 ms a step. If they go: write loops
# over the tensors.
foreach_norm = torch._foreach_norm
foreach_add_ = torch._foreach_add_
foreach_copy_ = torch._foreach_copy_

INDUCTOR = {
    "aot_inductor.precompile_headers": False,  # takes 12 s and 300 MB, and makes later compiles only 4 s faster
    "aot_inductor.enable_line_tables": False,  # only debuggers read them
    "aot_inductor.enable_frame_pointer": False,  # only profilers read it
    "cpp.vec_isa_ok": True,  # otherwise inductor first compiles and runs a test program, which takes 4 s
}
"""Options for compiling packages. They only save time, so options that this torch does not know are left out."""


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of nested tuples and dicts."""
    from torch.utils import _pytree

    return _pytree.tree_leaves(tree)


def flatten(tree: Any) -> tuple[list[Tensor], Callable[[list[Any]], Any]]:
    """The leaves, and a function from new leaves to a tree of the same structure.

    torch.utils._pytree orders the leaves as torch.export does. If it goes: use torch.utils.pytree or optree.
    """
    from torch.utils import _pytree

    tensors, spec = _pytree.tree_flatten(tree)
    return tensors, lambda new: _pytree.tree_unflatten(new, spec)


def trace(function: Callable[..., Any], tensors: list[Tensor]) -> torch.fx.GraphModule:
    """The graph of operations of a function of tensors, including those of gradients that it computes.

    torch.export alone can't trace torch.func.grad. If make_fx goes: use what replaces it as the tracer of torch.func.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    graph: torch.fx.GraphModule = make_fx(function)(*tensors)
    return graph


def scan(body: Callable[..., Any], carry: list[Tensor], xs: list[Tensor]) -> Any:
    """A loop over the first axis of xs, as one graph for any length. If it goes: use torch.scan, which torch plans."""
    from torch._higher_order_ops.scan import scan as torch_scan

    return torch_scan(body, carry, xs)


def compile_package(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a package of AOTInductor. If it goes: use torch.compile, which takes 10 s a process (docs/adr/0005)."""
    from torch._inductor import aoti_compile_and_package, list_options

    known = list_options()
    options = {name: value for name, value in INDUCTOR.items() if name in known}
    aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def load_package(path: Path, device: torch.device) -> Package:
    """Load the compiled function of a package.

    torch._inductor.aoti_load_package is the documented loader, which calls this one. It imports half of inductor, which
    takes 0.7 s a process, and parses a description of the arguments, which takes 0.2 ms a call. If this loader goes:
    use the documented one.
    """
    from torch._C._aoti import AOTIModelPackageLoader

    if device.type != "cpu":
        on_gpu: Package = AOTIModelPackageLoader(str(path), "model", False, 1, device.index).boxed_run
        return on_gpu  # its kernels are read from TMPDIR when they are first called
    # the loader unpacks into TMPDIR, where a process that is killed would leave it; a loaded library needs no file
    before = os.environ.get("TMPDIR")
    with TemporaryDirectory(ignore_cleanup_errors=True) as unpacked:
        os.environ["TMPDIR"] = unpacked
        try:
            run: Package = AOTIModelPackageLoader(str(path), "model", False, 1, -1).boxed_run
        finally:
            del os.environ["TMPDIR"]
            if before is not None:
                os.environ["TMPDIR"] = before
    return run
