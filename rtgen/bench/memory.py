"""The most memory that a process had."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_STATUS: Final = Path("/proc/self/status")


def peak_resident_bytes() -> int | None:
    """Of main memory, by this process since it began; None where the system does not tell."""
    with suppress(OSError, StopIteration, ValueError):
        # Not getrusage: on Linux that remembers the peak of the process that started this one.
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) << 10
    with suppress(ImportError, AttributeError):
        import psutil

        return int(psutil.Process(os.getpid()).memory_info().peak_wset)  # Windows
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if sys.platform == "darwin" else peak << 10)
    return None


def peak_allocated_bytes() -> int | None:
    """Of the GPU's memory, by torch's tensors; None where this process has not computed with torch on a GPU."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_allocated())
