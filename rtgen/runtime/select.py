"""Which GPUs this machine has, and which package target serves it best."""

import os
from dataclasses import dataclass
from typing import Any, Final

CPU: Final = "cpu"
"""The name of the target that needs no GPU."""


@dataclass(frozen=True)
class DetectedGpu:
    """An NVIDIA GPU as the driver describes it."""

    name: str
    compute_capability: str
    """As ``major.minor``."""
    vram_bytes: int
    free_bytes: int
    driver: str


def detect_gpus() -> list[DetectedGpu]:
    """The NVIDIA GPUs that CUDA may use here; empty without a driver, or when it does not answer."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, a broken one, or one that this process may not talk to: all mean "no GPU" here
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            _describe(pynvml, handle, driver)
            for index, handle in enumerate(handles)
            if is_visible(pynvml, index, handle)
        ]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def best_gpu_name() -> str:
    """What ``--gpu auto`` means: the config of the largest GPU whose compiler is installed, or ``cpu``."""
    from rtgen.config.load import match_gpu
    from rtgen.engine.compilers import installed_version, with_compiler

    for gpu in sorted(detect_gpus(), key=lambda gpu: -gpu.vram_bytes):
        config = match_gpu(gpu.name, gpu.compute_capability, gpu.vram_bytes / 2**30)
        if config is None or config.compute_capability is None:
            continue
        if installed_version(with_compiler(config).compiler) is not None:
            return config.name
    return CPU


def require_device(gpu: str) -> None:
    """Refuse a GPU's package on a machine without one before minutes go into building it. Raises NoGpuError."""
    from rtgen.config.load import load_gpu
    from rtgen.errors import NoGpuError

    if load_gpu(gpu).compute_capability is not None and not detect_gpus():
        raise NoGpuError(
            f"{gpu} packages run on an NVIDIA GPU, and this machine has none with a working driver",
            hint="rtgen run --gpu cpu runs on the processor; rtgen build works without a GPU",
        )


def _describe(pynvml: Any, handle: Any, driver: str) -> DetectedGpu:
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return DetectedGpu(
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        compute_capability=f"{major}.{minor}",
        vram_bytes=int(memory.total),
        free_bytes=int(memory.free),
        driver=driver,
    )


def is_visible(pynvml: Any, index: int, handle: Any) -> bool:
    """NVML shows every GPU; CUDA only those of CUDA_VISIBLE_DEVICES (indices or the beginnings of UUIDs)."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return True
    uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    names = [name.strip() for name in wanted.split(",")]
    return any(name == str(index) or (name.startswith("GPU-") and uuid.startswith(name)) for name in names)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
