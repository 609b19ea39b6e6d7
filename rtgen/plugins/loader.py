"""Cubins on a GPU: loaded once, launched by name. What TensorRT classes and torch ops launch through."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from typing import Any

from rtgen.errors import NoGpuError, PackageInvalidError
from rtgen.plugins.base import KernelSource

_DEFAULT_SHARED = 48 * 1024
"""Bytes of dynamic shared memory that a block may have without asking."""


class Pointer(int):
    """An address in device memory, to tell it from a number among a kernel's arguments."""


Argument = Pointer | int | float
"""What kernels take: addresses, 32-bit integers and 32-bit floats."""


class LoadedKernels:
    """The cubins of a package (or of a process) on the current device, by :attr:`KernelSource.name`."""

    def __init__(self, cubins: Mapping[str, bytes]) -> None:
        from cuda.core import Device, ObjectCode

        self._codes = {name: ObjectCode.from_cubin(code) for name, code in cubins.items()}
        self._device = int(Device().device_id)
        properties = Device().properties
        self.multiprocessors = int(properties.multiprocessor_count)
        self.compute_capability = "{}.{}".format(*Device().compute_capability)
        self._kernels: dict[tuple[str, str], Any] = {}
        self._shared: dict[tuple[str, str], int] = {}
        self._streams = cache(_stream)

    def launch(
        self,
        stream: int,
        source: KernelSource,
        entry: str,
        grid: tuple[int, ...],
        block: int,
        *arguments: Argument,
        shared: int = 0,
        overlap: bool = False,
    ) -> None:
        """Enqueue a kernel on a CUDA stream (its address) with ``shared`` bytes of dynamic shared memory.

        ``overlap``: it may start while the kernel before it ends (programmatic dependent launch, from Hopper on), so it
        must wait with griddepcontrol.wait before it touches memory. Raises PackageInvalidError when there is no such
        kernel.
        """
        from cuda.core import LaunchConfig, launch

        kernel = self._kernel(source.name, entry, shared)
        config = LaunchConfig(grid=grid, block=block, shmem_size=shared, programmatic_stream_serialization=overlap)
        launch(self._streams(stream), config, kernel, *map(_native, arguments))

    def _kernel(self, name: str, entry: str, shared: int) -> Any:
        key = (name, entry)
        if key not in self._kernels:
            if name not in self._codes:
                raise PackageInvalidError(f"kernel {name} is missing", hint="rtgen build makes it again")
            self._kernels[key] = self._codes[name].get_kernel(entry)
        if shared > self._shared.get(key, _DEFAULT_SHARED):
            _allow_shared(self._kernels[key], self._device, shared)
            self._shared[key] = shared
        return self._kernels[key]


@cache
def current_kernels(sources: tuple[KernelSource, ...]) -> LoadedKernels:
    """Kernels compiled now for the current GPU: for torch ops, which have no package. Raises NoGpuError without one."""
    from cuda.core import Device

    from rtgen.plugins.compiler import compile_kernel

    try:
        capability = "{}.{}".format(*Device().compute_capability)
    except Exception as error:  # cuda-core keeps its error class private
        raise NoGpuError(f"the NVIDIA driver does not answer: {error}", hint="rtgen doctor shows more") from error
    return LoadedKernels({source.name: compile_kernel(source, capability).code for source in sources})


def _native(argument: Argument) -> Any:
    if isinstance(argument, Pointer):
        return ctypes.c_uint64(argument)
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int32(argument)


def _stream(address: int) -> Any:
    from cuda.core import LEGACY_DEFAULT_STREAM, Stream

    return Stream.from_handle(address) if address else LEGACY_DEFAULT_STREAM


def _allow_shared(kernel: Any, device: int, size: int) -> None:
    from cuda.bindings import driver

    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(attribute, size, driver.CUkernel(int(kernel.handle)), device)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise PackageInvalidError(f"the GPU has no {size} bytes of shared memory a block", hint="rtgen gpu ls")
