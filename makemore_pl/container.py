"""Calls what AOTInductor has compiled, and lets other threads run meanwhile.

torch's own binding, `AOTIModelPackageLoader.boxed_run`, keeps the interpreter lock (torch 2.13) and would hold up the
thread that draws pictures. ctypes releases it.
"""

import ctypes
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from torch import Tensor
from torch._C import _aoti

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Container:
    """The model of a package compiled for the CPU, for the length of the process.

    Raises:
        OSError: where the package's library can't be loaded.
        RuntimeError: where the library refuses.
    """

    def __init__(self, package: Path) -> None:
        # the mapped library outlives its file
        with TemporaryDirectory() as directory, ZipFile(package) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".so"))
            self._library = ctypes.CDLL(archive.extract(member, directory))
        self._handle, outputs = ctypes.c_void_p(), ctypes.c_size_t()
        create = self._library.AOTInductorModelContainerCreateWithDevice
        _check(create(ctypes.byref(self._handle), ctypes.c_size_t(1), b"cpu", None))
        _check(self._library.AOTInductorModelContainerGetNumOutputs(self._handle, ctypes.byref(outputs)))
        self._outputs = ctypes.c_void_p * outputs.value
        self._run = self._library.AOTInductorModelContainerRun
        self._run.argtypes = (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t),
            *(ctypes.c_void_p, ctypes.c_void_p),
        )

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        # the library takes these handles of the tensors, and gives its own
        handles = [_pointer_of(each, None) for each in _aoti.unsafe_alloc_void_ptrs_from_tensors(inputs)]
        outputs = self._outputs()
        given = (ctypes.c_void_p * len(handles))(*handles)
        _check(self._run(self._handle, given, len(handles), outputs, len(outputs), None, None))
        capsules = [_capsule(pointer, None, None) for pointer in outputs]
        tensors: list[Tensor] = _aoti.alloc_tensors_by_stealing_from_void_ptrs(capsules)
        return tensors


def _check(error: int) -> None:
    if error:
        raise RuntimeError("the compiled steps failed; what went wrong is on the standard error stream")
