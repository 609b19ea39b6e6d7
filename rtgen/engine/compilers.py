"""Which compiler serves a GPU here: the one its config names, its fallback, or the one that the user asks for."""

from importlib import metadata

from rtgen.config.gpu import Compiler, GpuConfig
from rtgen.engine import trt
from rtgen.errors import MissingDependencyError, UsageError

TORCH_INSTALL = 'pip install "rtgen[compile]"'


def installed_version(compiler: Compiler) -> str | None:
    """The version on this machine, read from the package metadata; None when it is not installed."""
    if compiler == "tensorrt_rtx" or compiler == "tensorrt":
        return trt.installed_version(compiler)
    names = ("torch",) if compiler == "torch" else ("onnxruntime-gpu", "onnxruntime")
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def with_compiler(gpu: GpuConfig, wanted: Compiler | None = None) -> GpuConfig:
    """The target with the compiler that will serve it: ``wanted``, its own, or its fallback where only that is here.

    Raises UsageError for one that cannot serve it. Whether the compiler is installed is for the caller to say.
    """
    if wanted is None:
        is_missing = installed_version(gpu.compiler) is None
        if gpu.fallback is None or not is_missing or installed_version(gpu.fallback) is None:
            return gpu
        wanted = gpu.fallback
    if wanted not in (gpu.compiler, gpu.fallback, "torch"):  # torch serves everything
        served = dict.fromkeys(name for name in (gpu.compiler, gpu.fallback, "torch") if name)
        raise UsageError(f"{wanted} does not serve {gpu.name}", hint=f"use --backend {' or '.join(served)}")
    return gpu.model_copy(update={"compiler": wanted})


def require_torch(who: str) -> str:
    """The version of torch; ``who``, with a verb to come, is the subject of the MissingDependencyError without it."""
    found = installed_version("torch")
    if found is None:
        raise MissingDependencyError(f"{who} is not installed", hint=TORCH_INSTALL)
    return found
