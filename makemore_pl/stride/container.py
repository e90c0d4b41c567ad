"""Calls what AOTInductor has compiled, and lets other threads run meanwhile.

torch's own binding, `AOTIModelPackageLoader.boxed_run`, keeps the interpreter lock (torch 2.13) and would hold up the
thread that draws pictures. ctypes releases it.
"""

import ctypes
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from torch import Tensor
from torch._C import _aoti

# prototypes of our own: those of ctypes.pythonapi belong to everybody
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


class Container:
    """The model of a package compiled for the CPU, for the length of the process.

    Raises:
        ValueError: where the package is damaged.
        RuntimeError: where the library refuses, OSError where it can't be loaded.
    """

    def __init__(self, package: Path) -> None:
        self._handle = ctypes.c_void_p()
        inputs, outputs = ctypes.c_size_t(), ctypes.c_size_t()
        with TemporaryDirectory() as directory:  # a library in use outlives its file
            self._library = ctypes.CDLL(_library(package, directory))
            create = self._library.AOTInductorModelContainerCreateWithDevice
            self._check(create(ctypes.byref(self._handle), ctypes.c_size_t(1), b"cpu", None))
        self._check(self._library.AOTInductorModelContainerGetNumInputs(self._handle, ctypes.byref(inputs)))
        self._check(self._library.AOTInductorModelContainerGetNumOutputs(self._handle, ctypes.byref(outputs)))
        self._inputs, self._outputs = ctypes.c_void_p * inputs.value, ctypes.c_void_p * outputs.value
        self._run = self._library.AOTInductorModelContainerRun
        array = ctypes.c_void_p, ctypes.c_size_t
        self._run.argtypes = (ctypes.c_void_p, *array, *array, ctypes.c_void_p, ctypes.c_void_p)

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        # the library takes these handles of the tensors, and gives its own
        handles = [_pointer_of(each, None) for each in _aoti.unsafe_alloc_void_ptrs_from_tensors(inputs)]
        given, outputs = self._inputs(*handles), self._outputs()
        assert len(handles) == len(given)
        # the last is for operations that have no function in C: a step of this project's networks has none
        self._check(self._run(self._handle, given, len(given), outputs, len(outputs), None, None))
        capsules = [_capsule(pointer, None, None) for pointer in outputs]
        tensors: list[Tensor] = _aoti.alloc_tensors_by_stealing_from_void_ptrs(capsules)
        return tensors

    def _check(self, error: int) -> None:
        if error:
            said = ctypes.c_char_p()
            self._library.AOTInductorGetLastError(ctypes.byref(said))
            raise RuntimeError(f"the compiled steps failed: {(said.value or b'no reason given').decode()}")


def _library(package: Path, directory: str) -> str:
    try:
        with ZipFile(package) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".so"))
            return archive.extract(member, directory)
    except (BadZipFile, ValueError) as error:
        raise ValueError(f"{package} is damaged: remove it, and the steps are compiled again.") from error
