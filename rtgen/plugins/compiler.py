"""Kernels compiled ahead of time: CUDA C++ of ``plugins/`` to a cubin for a named GPU, with NVRTC and without a GPU.

NVRTC comes as a Python package, so nobody needs a compiler, and the sources include no header of the CUDA toolkit.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from rtgen.config.locate import data_directory
from rtgen.errors import BuildError, MissingDependencyError
from rtgen.plugins.base import KernelSource

_FAMILY_SPECIFIC = ("9.0", "10.0", "10.3", "12.0", "12.1")
"""Compute capabilities whose newest instructions need the architecture's name with an ``a``."""

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """What the compiler reports of a kernel; sizes in bytes, ``shared`` without the dynamic part."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@dataclass(frozen=True)
class Cubin:
    """Machine code of one source for one GPU, and what each of its kernels takes."""

    code: bytes
    resources: Mapping[str, Resources]


def architecture(compute_capability: str) -> str:
    """NVRTC's name of a compute capability: ``sm_86`` of 8.6, ``sm_90a`` of 9.0."""
    suffix = "a" if compute_capability in _FAMILY_SPECIFIC else ""
    return f"sm_{compute_capability.replace('.', '')}{suffix}"


@cache
def compile_kernel(source: KernelSource, compute_capability: str) -> Cubin:
    """Compile a source of ``plugins/``; some seconds at most, kept for the life of the process.

    Raises MissingDependencyError without NVRTC or cuda-core, BuildError with the compiler's words when it refuses.
    """
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise MissingDependencyError(
            f"cuda-core does not load: {error}", hint='pip install "cuda-core[cu13]" nvidia-cuda-nvrtc'
        ) from error
    folder = data_directory("plugins")
    options = ProgramOptions(
        name=source.file,
        arch=architecture(compute_capability),
        std="c++17",
        include_path=str(folder),
        define_macro=[(name, str(value)) for name, value in source.defines] or None,
        ptxas_options=["-v"],
        device_as_default_execution_space=True,
        no_cache=True,
    )
    log = io.StringIO()
    try:
        program = Program((folder / source.file).read_text(encoding="utf-8"), "c++", options)
        code = bytes(program.compile("cubin", logs=log).code)
    except Exception as error:  # cuda-core keeps its error class private
        raise BuildError(f"plugins/{source.file} does not compile for {options.arch}: {error}") from error
    return Cubin(code, _resources(log.getvalue()))


def compiler_version() -> str:
    """Of NVRTC; part of the keys of what it compiled."""
    try:
        return metadata.version("nvidia-cuda-nvrtc")
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError("NVRTC is not installed", hint="pip install nvidia-cuda-nvrtc") from error


def _resources(log: str) -> dict[str, Resources]:
    """From ptxas's report, which has one paragraph an entry function."""
    found = {}
    parts = _ENTRY.split(log)[1:]
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        spills, used, shared = _SPILLS.search(text), _USED.search(text), _SHARED.search(text)
        stack, stores, loads = map(int, spills.groups()) if spills else (0, 0, 0)
        found[name] = Resources(
            int(used.group(1)) if used else 0, stack, stores, loads, int(shared.group(1)) if shared else 0
        )
    return found
