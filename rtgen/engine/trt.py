"""The one door to TensorRT: both flavours, loaded on demand.

``tensorrt_rtx`` (TensorRT for RTX, GeForce and RTX GPUs) and ``tensorrt`` (data-centre GPUs) share a Python API. Where
they differ, :data:`TRAITS` or a look at what the module offers decides. Importing this file loads no native code.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, Literal

from rtgen.data_types import TENSORRT_TYPES, DataType
from rtgen.errors import MissingDependencyError, NoGpuError, PackageInvalidError, RtgenError

Flavour = Literal["tensorrt_rtx", "tensorrt"]
Module = Any
"""The imported ``tensorrt_rtx`` or ``tensorrt`` module, which has no types."""


@dataclass(frozen=True)
class Traits:
    """What a flavour serves and how it is installed."""

    title: str
    distributions: tuple[str, ...]
    """Names on the package index, most specific last; the first one present gives the version."""
    install: str
    compute_capabilities: tuple[str, ...]


TRAITS: Mapping[Flavour, Traits] = {
    "tensorrt_rtx": Traits(
        title="TensorRT for RTX",
        distributions=("tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12"),
        install="pip install tensorrt_rtx",
        # https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html
        compute_capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    ),
    "tensorrt": Traits(
        title="TensorRT",
        distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        install='pip install "rtgen[tensorrt]"',
        # https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix.html
        compute_capabilities=("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1"),
    ),
}


def installed_version(flavour: Flavour) -> str | None:
    """The version on this machine, read from the package metadata; None when it is not installed."""
    for distribution in TRAITS[flavour].distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def load(flavour: Flavour) -> Module:
    """Import the native library. Raises MissingDependencyError when it is absent or does not load."""
    traits = TRAITS[flavour]
    try:
        return import_module(flavour)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{traits.title} is not installed", hint=traits.install) from error
    except (ImportError, OSError, RuntimeError) as error:
        # The wheels load their libraries with ctypes, which reports a missing one as OSError.
        message = f"{traits.title} is installed but does not load: {error}"
        raise MissingDependencyError(message, hint=f"{traits.install} --force-reinstall") from error


def unsupported_reason(flavour: Flavour, compute_capability: str) -> str | None:
    """Why a flavour cannot serve a GPU, as a sentence for people; None when it can."""
    traits = TRAITS[flavour]
    if compute_capability in traits.compute_capabilities:
        return None
    served = ", ".join(traits.compute_capabilities)
    return f"{traits.title} does not serve compute capability {compute_capability} (it serves {served})"


def supports(flavour: Flavour, compute_capability: str) -> bool:
    """Whether a flavour serves a GPU of this compute capability, such as ``8.9``."""
    return unsupported_reason(flavour, compute_capability) is None


def set_target(module: Module, config: Any, compute_capability: str) -> None:
    """Aim a builder config at a GPU that need not be present.

    A flavour without ``ComputeCapability`` builds for the GPU in this machine and needs nothing here.
    Raises MissingDependencyError when the installed version is too old for the GPU.
    """
    if not hasattr(module, "ComputeCapability"):
        return
    member = "SM" + compute_capability.replace(".", "")
    if not hasattr(module.ComputeCapability, member):
        message = f"{module.__name__} {module.__version__} cannot build for compute capability {compute_capability}"
        raise MissingDependencyError(message, hint=f"pip install --upgrade {module.__name__}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(module.ComputeCapability, member), 0)


def create_network(module: Module, builder: Any) -> Any:
    """An empty network whose types are those of the graph; TensorRT never picks a precision by itself."""
    return builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def data_type(module: Module, name: DataType) -> Any:
    """TensorRT's ``DataType`` of a manifest's element type."""
    return getattr(module.DataType, TENSORRT_TYPES[name])


def data_type_name(value: Any) -> DataType:
    """The manifest's name of a TensorRT ``DataType``. Raises PackageInvalidError for one that rtgen does not use."""
    for name, member in TENSORRT_TYPES.items():
        if value.name == member:
            return name
    raise PackageInvalidError(f"the engine has a tensor of type {value.name}", hint="make it again: rtgen build")


def logger(module: Module, emit: Callable[[str, str], None]) -> Any:
    """An ``ILogger`` that calls ``emit(severity, line)`` for everything but verbose lines, from any thread.

    Severities are ``info``, ``warning`` and ``error``. The logger must outlive what is made with it.
    """
    names = {
        module.ILogger.INTERNAL_ERROR: "error", module.ILogger.ERROR: "error", module.ILogger.WARNING: "warning",
        module.ILogger.INFO: "info",
    }  # fmt: skip

    class Forwarding(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            name = names.get(severity)
            if name is not None:
                emit(name, message)

    return Forwarding()


class LogLines:
    """The latest lines of a logger, for error messages. Use as ``logger(module, LogLines())``."""

    def __init__(self, limit: int = 200) -> None:
        self._lines: deque[tuple[str, str]] = deque(maxlen=limit)

    def __call__(self, severity: str, line: str) -> None:
        self._lines.append((severity, line))

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(line for _, line in self._lines)

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(line for severity, line in self._lines if severity == "error")


# cudaErrorInsufficientDriver, cudaErrorNoDevice
_NO_DRIVER = re.compile(r"cudaError (35|100)\b|driver version is insufficient|no CUDA-capable device")


def deserialize(module: Module, runtime: Any, lines: LogLines, engine: bytes | memoryview) -> Any:
    """An ``ICudaEngine`` from the bytes of an engine file; ``lines`` is what the runtime's logger writes to.

    Raises NoGpuError without a GPU driver, PackageInvalidError for bytes that this version cannot load.
    """
    result = runtime.deserialize_cuda_engine(engine)
    if result is None:
        raise _load_error(module, lines.errors)
    return result


def _load_error(module: Module, errors: Iterable[str]) -> RtgenError:
    reasons = list(errors)
    if any(_NO_DRIVER.search(reason) for reason in reasons):
        return NoGpuError("TensorRT needs an NVIDIA GPU and its driver", hint="rtgen doctor shows what is missing")
    reason = reasons[0] if reasons else "no reason given"
    message = f"{module.__name__} {module.__version__} cannot load the engine: {reason}"
    return PackageInvalidError(message, hint="make it again for this version: rtgen build")
