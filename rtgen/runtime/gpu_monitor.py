"""Memory, power and utilisation of an NVIDIA GPU while something runs, through NVML."""

import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from rtgen.runtime.select import is_visible

INTERVAL_SECONDS: Final = 0.25
"""NVML averages power and utilisation over about as long (NVML API reference, nvmlUtilization_t)."""


@dataclass(frozen=True)
class GpuUse:
    """What was seen of the whole GPU, other programs included; None where NVML does not say."""

    gpu_memory_bytes: int | None = None
    """The most that was in use."""
    gpu_power_w: float | None = None
    """On average."""
    gpu_utilisation: float | None = None
    """Share of the time in which a kernel ran, 0 .. 1."""


class GpuMonitor:
    """Looks at a GPU a few times a second, as a context manager; its thread ends with the block.

    Without a GPU, a driver or NVML nothing is seen and nothing is raised. The GPU is the first one of
    ``compute_capability`` (``major.minor``) that CUDA_VISIBLE_DEVICES leaves, in NVML's order; None looks at none.
    """

    def __init__(self, compute_capability: str | None, interval_s: float = INTERVAL_SECONDS) -> None:
        self._capability, self._interval_s = compute_capability, interval_s
        self._memory: int | None = None
        self._power, self._busy = _Mean(), _Mean()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        nvml = _open() if self._capability is not None else None
        if nvml is not None:
            self._thread = threading.Thread(target=self._watch, args=(nvml,), name="rtgen-nvml", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def use(self) -> GpuUse:
        """What was seen so far."""
        return GpuUse(self._memory, self._power.value, self._busy.value)

    def _watch(self, nvml: Any) -> None:
        try:
            handle = _find(nvml, self._capability)
            while handle is not None:
                self._look(nvml, handle)
                if self._ended.wait(self._interval_s):
                    return
        except nvml.NVMLError:  # the GPU is lost, or may not be looked at
            return
        finally:
            nvml.nvmlShutdown()

    def _look(self, nvml: Any, handle: Any) -> None:
        """One sample; a GPU may answer some questions and not others."""
        memory = _asked(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        if memory is not None:
            self._memory = max(int(memory.used), self._memory or 0)
        milliwatts = _asked(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
        if milliwatts is not None:
            self._power.add(milliwatts / 1000)
        rates = _asked(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
        if rates is not None:
            self._busy.add(rates.gpu / 100)


class _Mean:
    """An average in constant memory."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._sum += value
        self._count += 1

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None


def _open() -> Any:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, no driver, a broken one, or one that this process may not talk to
        return None
    return pynvml


def _find(nvml: Any, capability: str | None) -> Any:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        if f"{major}.{minor}" == capability and is_visible(nvml, index, handle):
            return handle
    return None


def _asked(nvml: Any, question: Any, handle: Any) -> Any:
    try:
        return question(handle)
    except nvml.NVMLError:  # most of all: not supported
        return None
