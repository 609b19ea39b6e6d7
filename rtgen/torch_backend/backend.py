"""Torch packages on the GPU they are for, or on the processor (see ``rtgen.runtime.backends``)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

import torch

from rtgen.engine.manifest import Component, ComponentEntry
from rtgen.errors import NoGpuError, PackageInvalidError, PackageMismatchError
from rtgen.torch_backend.description import read_description
from rtgen.torch_backend.fp8_linear import CAPABILITY
from rtgen.torch_backend.lanes import CudaGpu, CudaLane, HostLane, Lane, too_little_memory
from rtgen.torch_backend.modules import load_module, map_module
from rtgen.torch_backend.programs import Program, StreamedTextEncoder, TextEncoderProgram, program_of
from rtgen.torch_backend.session import TorchSession
from rtgen.torch_backend.step_kernels import KernelSteps, is_served
from rtgen.torch_backend.tables import Table, table_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from rtgen.engine.package import Package
    from rtgen.quantize.result import LayerResult


def open_package(package: Package) -> TorchBackend:
    """The backend for a package of weights. Raises NoGpuError, PackageMismatchError or PackageInvalidError."""
    capability = package.manifest.target.compute_capability
    return TorchBackend(package, None if capability is None else find_gpu(capability))


class TorchBackend:
    """Each component has a stream of its own on a GPU, so the next chunk is denoised while the last is decoded."""

    name = "torch"

    def __init__(self, package: Package, gpu: CudaGpu | None) -> None:
        """Without ``gpu`` everything runs on the processor, where components take turns: each uses all cores."""
        entry = next(iter(package.manifest.components.values()))
        self._package, self._gpu = package, gpu
        self._description = read_description(package.file(entry.file), package.manifest.model)
        self._sessions: WeakSet[TorchSession] = WeakSet()  # a host component is opened again for each prompt
        self.overlaps = gpu is not None
        if gpu is not None:
            _check_formats(self._description.layers, gpu)
        count = torch.get_num_threads()
        self.device = gpu.name if gpu is not None else f"CPU, {count} thread{'s' if count > 1 else ''}"

    def open(self, component: str) -> TorchSession:
        """Load a component.

        Raises PackageInvalidError or CheckpointError for files that are not what the manifest says, MemoryPlanError.
        """
        entry = self._package.manifest.components[component]  # type: ignore[index]  # a KeyError is right
        if Table.of(entry) != table_of(component, self._description):  # type: ignore[arg-type]  # one of them
            raise PackageInvalidError(f"{entry.file} and the manifest disagree about the {component}'s tensors")
        try:
            program = self._load(component, entry)  # type: ignore[arg-type]
        except torch.OutOfMemoryError as error:
            raise too_little_memory(self.device) from error
        session = TorchSession(entry, program, self._lane(program), self._package.manifest)
        self._sessions.add(session)
        return session

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._sessions.clear()

    def _load(self, component: Component, entry: ComponentEntry) -> Program:
        device = torch.device("cpu") if self._gpu is None else self._gpu.device
        files = [self._package.file(name) for name in entry.weights]
        if entry.runs_on == "host":
            module: Any = map_module(component, self._description, files)
            return StreamedTextEncoder(module, device)
        module = load_module(component, self._description, files, device)
        if self._gpu is not None:
            torch.cuda.synchronize(device)
        if component == "text_encoder":
            return TextEncoderProgram(module)
        steps = self._steps() if component == "denoiser" else None
        return program_of(module, entry, self._description, device, steps)

    def _steps(self) -> KernelSteps | None:
        """Kernels are for float16 on a GPU; elsewhere the modules compute the same."""
        config = self._description.model.denoiser
        if self._gpu is None or self._description.precision != "float16" or not is_served(config):
            return None
        return KernelSteps(config, torch.cuda.get_device_capability(self._gpu.device))

    def _lane(self, program: Program) -> Lane:
        return HostLane() if self._gpu is None else CudaLane(self._gpu, captures=program.is_capturable)


def find_gpu(compute_capability: str) -> CudaGpu:
    """The first GPU of a compute capability. Raises NoGpuError, PackageMismatchError."""
    if not torch.cuda.is_available():
        built = "is built without CUDA" if torch.version.cuda is None else "finds no CUDA GPU"
        raise NoGpuError(
            f"the installed torch {torch.__version__} {built}", hint="https://pytorch.org/get-started says how"
        )
    for index in range(torch.cuda.device_count()):
        if "{}.{}".format(*torch.cuda.get_device_capability(index)) == compute_capability:
            torch.cuda.set_device(index)  # kernels of plugins are launched on the current device
            return CudaGpu(torch.device("cuda", index), torch.cuda.get_device_name(index))
    raise PackageMismatchError(
        f"no GPU here has compute capability {compute_capability}", hint="rtgen gpu ls shows the ones to build for"
    )


def _check_formats(layers: Iterable[LayerResult], gpu: CudaGpu) -> None:
    if any(layer.weights == "fp8" for layer in layers) and torch.cuda.get_device_capability(gpu.device) < CAPABILITY:
        raise PackageMismatchError(
            f"{gpu.name} has no FP8 tensor cores", hint="rtgen build --recipe fp16 makes a package that it runs"
        )
