"""Backends run the components of an engine package. One file each; :func:`open_backend` picks one."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Final

from rtgen.errors import MemoryPlanError, NoGpuError, PackageMismatchError, RtgenError, UsageError
from rtgen.runtime.backends.host import with_host_components
from rtgen.runtime.session import Backend

if TYPE_CHECKING:
    from rtgen.engine.manifest import Manifest
    from rtgen.engine.package import Package
    from rtgen.runtime.select import DetectedGpu

MODULES: Final[Mapping[str, str]] = {
    "onnxruntime": "rtgen.runtime.backends.onnxruntime",
    "tensorrt_rtx": "rtgen.runtime.backends.tensorrt",
    "tensorrt": "rtgen.runtime.backends.tensorrt",
    "torch": "rtgen.torch_backend.backend",  # by name: this room imports no torch
}
"""Module of each compiler; it offers ``open_package(package) -> Backend``."""


def open_backend(package: "Package", name: str = "auto") -> Backend:
    """The backend for a package, on this machine's device.

    ``name`` is ``auto`` or the compiler that the package was made with. Raises UsageError for any other,
    NoGpuError, PackageMismatchError or MemoryPlanError when the package cannot run here.
    """
    compiler = package.manifest.compiler.name
    if name not in ("auto", compiler):
        problem = f"the package was made with {compiler}" if name in MODULES else f"there is no backend '{name}'"
        raise UsageError(f"{problem}, so it runs with '{compiler}' only", hint="open it without naming a backend")
    if package.manifest.target.compute_capability is not None:
        check_gpu(package.manifest)
    if compiler == "torch":
        from rtgen.engine.compilers import require_torch

        require_torch(f"the package for {package.manifest.target.gpu} runs with torch, which")
    module = import_module(MODULES[compiler])
    backend: Backend = module.open_package(package)
    return with_host_components(package, backend)


def check_gpu(manifest: "Manifest") -> None:
    """Refuse a GPU package that cannot run here, before native code sees it.

    Raises NoGpuError, PackageMismatchError or MemoryPlanError.
    """
    from rtgen.runtime.select import detect_gpus

    gpus = detect_gpus()
    target = manifest.target
    if not gpus:
        raise NoGpuError(
            f"the package is for {target.gpu}, and this machine has no NVIDIA GPU with a working driver",
            hint="rtgen run --gpu cpu runs on the processor",
        )
    fitting = [gpu for gpu in gpus if gpu.compute_capability == target.compute_capability]
    if not fitting:
        raise _other_gpu(manifest, gpus[0])
    _check_compiler(manifest)
    _check_memory(manifest, max(fitting, key=lambda gpu: gpu.free_bytes))


def _other_gpu(manifest: "Manifest", gpu: "DetectedGpu") -> RtgenError:
    from rtgen.config.load import match_gpu

    config = match_gpu(gpu.name, gpu.compute_capability, gpu.vram_bytes / 2**30)
    return PackageMismatchError(
        f"the package is for {manifest.target.gpu} (compute capability {manifest.target.compute_capability}), "
        f"but this machine has {gpu.name} ({gpu.compute_capability})",
        hint="rtgen gpu ls shows the GPUs that packages can be built for"
        if config is None
        else f"rtgen build --gpu {config.name}",
    )


def _check_compiler(manifest: "Manifest") -> None:
    from rtgen.engine.trt import TRAITS, installed_version

    compiler = manifest.compiler
    if compiler.name == "onnxruntime" or compiler.name == "torch":  # graphs and weights load in any version
        return
    installed = installed_version(compiler.name)
    if installed is not None and installed != compiler.version:
        title = TRAITS[compiler.name].title
        raise PackageMismatchError(
            f"the package was made with {title} {compiler.version}, and {installed} is installed; engines load "
            "in the version that built them only",
            hint=f"rtgen build --gpu {manifest.target.gpu}, or pip install {compiler.name}=={compiler.version}",
        )


def _check_memory(manifest: "Manifest", gpu: "DetectedGpu") -> None:
    plan = manifest.memory_plan
    if plan.total > gpu.free_bytes:
        raise MemoryPlanError(
            f"the package needs {plan.total / 2**30:.1f} GiB of GPU memory, and {gpu.name} has "
            f"{gpu.free_bytes / 2**30:.1f} of {gpu.vram_bytes / 2**30:.1f} GiB free",
            hint="close other programs that use the GPU",
        )
