"""A GPU that is pretended on the CPU: finds tensors on the wrong device and counts how often the host would wait.

`MAKEMORE_TEST_DEVICE=pretended make test-gpu` runs the tests of a GPU on it, as far as they stay in one process. It
knows nothing of CUDA's kernels, speed, memory or rounding. `install` is for the whole process and can't be undone.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

CUDA = torch.device("cuda:0")
GENERATOR = torch.Generator().manual_seed(0)
"""Of the GPU."""
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten._unique2.default, aten.unique_dim.default, aten.bincount.default, aten._linalg_svd.default,
}  # fmt: skip
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
MAKING = {"rand", "randn", "randint", "randperm"}


_sync_debug_mode = ["default"]


def waits(what: str) -> None:
    if _sync_debug_mode[-1] == "warn":
        warnings.warn(f"{what} is a synchronizing CUDA operation", stacklevel=2)


class OnGPU(Tensor):
    """Says that it is on cuda:0, and holds a tensor of the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGPU":
        assert type(held) is Tensor
        made: OnGPU = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().clone().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnGPU":
        copy = OnGPU(self.held.detach().clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy._is_param = True
        memo[id(self)] = copy
        return copy


class _Sent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return OnGPU(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        assert isinstance(gradient, OnGPU)
        return gradient.held


def operate(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation with at least one tensor on the GPU: all must be there, but single numbers and indices."""
    tensors = [each for each in _pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    here = [each for each in tensors if isinstance(each, OnGPU)]
    elsewhere = [each for each in tensors if not isinstance(each, OnGPU)]
    if func in INDEXING:
        if elsewhere or any(index is not None and index.dtype == torch.bool for index in args[1]):
            waits(str(func))
    elif func is aten.copy_.default:
        if elsewhere:
            waits("copy_")
    elif any(each.dim() for each in elsewhere) or (elsewhere and func is aten.cat.default):
        raise RuntimeError(f"Expected all tensors to be on the same device, {func} has some on cuda:0 and on the CPU")
    if func in WAITING:
        waits(str(func))
    args, kwargs = _pytree.tree_map(lambda each: each.held if isinstance(each, OnGPU) else each, (args, kwargs))
    if torch.Tag.nondeterministic_seeded in func.tags:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(GENERATOR.get_state())
            result = func(*args, **kwargs)
            GENERATOR.set_state(torch.get_rng_state())
    else:
        result = func(*args, **kwargs)
    same = {id(each.held): each for each in here}

    def returned(value: Any) -> Any:
        if type(value) is not Tensor:
            return value
        return same[id(value)] if id(value) in same else OnGPU(value)

    return tensors[0] if func is aten.copy_.default else _pytree.tree_map(returned, result)


class Functions(TorchFunctionMode):
    """What makes tensors on the GPU, and what takes them from there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        on_gpu = bool(args) and isinstance(args[0], OnGPU)
        if name == "pin_memory":
            return args[0]
        if name == "to" and isinstance(args[0], Tensor):
            return self.moved(func, *args, **kwargs)
        if name in ("cpu", "tolist") and on_gpu:
            waits(name)
            held = args[0].held.detach().clone()
            return held if name == "cpu" else held.tolist()
        if name == "numpy" and on_gpu:
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        if _is_gpu(kwargs.get("device")) and not on_gpu:
            if name in MAKING:
                kwargs.setdefault("generator", GENERATOR)
            made = func(*args, **kwargs | {"device": "cpu"})
            if name in ("tensor", "as_tensor"):
                waits(name)
            return OnGPU(made.detach()).requires_grad_(made.requires_grad)
        return func(*args, **kwargs)

    @staticmethod
    def moved(func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tensor.to, with a device, a dtype, both, or another tensor."""
        args = tuple(each for arg in args for each in ((arg.device, arg.dtype) if isinstance(arg, Tensor) else (arg,)))
        waiting = not kwargs.pop("non_blocking", any(each is True for each in args))
        device = kwargs.get("device", next((each for each in args if isinstance(each, str | torch.device)), None))
        dtype = (
            kwargs.get("dtype", next((each for each in args if isinstance(each, torch.dtype)), None)) or tensor.dtype
        )
        if device is not None and _is_gpu(device) != isinstance(tensor, OnGPU):
            if waiting:
                waits("to")
            tensor = tensor.held.detach().clone() if isinstance(tensor, OnGPU) else _Sent.apply(tensor)
        converted: Tensor = func(tensor, dtype)
        return converted


def _is_gpu(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def install() -> None:
    """From now on torch finds one GPU in this process."""
    answers = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "set_device": None,
        "_lazy_init": None, "empty_cache": None, "synchronize": None, "get_device_name": "pretended",
        "get_device_capability": (9, 0), "is_bf16_supported": True,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    for place in (torch.cuda, torch.cuda.random):
        place.get_rng_state = lambda *_: GENERATOR.get_state()
        place.set_rng_state = lambda state, *_: GENERATOR.set_state(state)
        place.get_rng_state_all = lambda: [GENERATOR.get_state()]  # type: ignore[attr-defined]
        place.set_rng_state_all = lambda states: GENERATOR.set_state(states[0])  # type: ignore[attr-defined]
        place.manual_seed = place.manual_seed_all = lambda seed: GENERATOR.manual_seed(seed)  # type: ignore[attr-defined]
    torch.cuda.set_sync_debug_mode = _sync_debug_mode.append
    # what C++ sees is a tensor on the CPU
    begin = torch.autocast.__init__
    torch.autocast.__init__ = lambda self, device, *args, **kwargs: begin(self, "cpu", *args, **kwargs)  # type: ignore[method-assign]
    group = clip_grad._group_tensors_by_device_and_dtype
    clip_grad._group_tensors_by_device_and_dtype = lambda lists, *args: {  # type: ignore[attr-defined]
        (found[0][0][0].device, dtype): found for (_, dtype), found in group(lists, *args).items()
    }
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Functions().__enter__()
