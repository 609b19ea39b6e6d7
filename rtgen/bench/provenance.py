"""Where and with what figures were made."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import rtgen
from rtgen.config.locate import data_directory
from rtgen.runtime.cpu import thread_count
from rtgen.store.keys import tree_digest


def provenance() -> dict[str, Any]:
    """Of a report: versions, the digest of the kernels' sources, the machine, the date (UTC)."""
    return {
        "rtgen": rtgen.__version__,
        "plugin_sources": tree_digest(data_directory("plugins")),
        "nvrtc": _installed("nvidia-cuda-nvrtc"),
        "torch": _installed("torch"),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """The system, and the GPU as torch and the driver describe it; clocks in MHz as they are found."""
    cores = thread_count()
    host = f"{platform.system()} {platform.machine()}, {cores} CPU core{'s' if cores > 1 else ''}"
    return {"host": host, "python": platform.python_version()} | _gpu() | _driver()


def _gpu() -> dict[str, Any]:
    torch = sys.modules.get("torch")  # whoever measured has imported it
    if torch is None or not torch.cuda.is_available():
        return {}
    return {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
    }


def _driver() -> dict[str, Any]:
    """What NVML says of the first GPU; nothing where it is not there."""
    with suppress(Exception):  # a driver may lack any of these
        import pynvml as nvml

        nvml.nvmlInit()
        try:
            device = nvml.nvmlDeviceGetHandleByIndex(0)
            return {
                "driver": nvml.nvmlSystemGetDriverVersion(),
                "clock_sm_mhz": nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM),
                "clock_memory_mhz": nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM),
                "clock_sm_most_mhz": nvml.nvmlDeviceGetMaxClockInfo(device, nvml.NVML_CLOCK_SM),
            }
        finally:
            nvml.nvmlShutdown()
    return {}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
