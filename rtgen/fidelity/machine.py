"""Where a report was made, and with what."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

import rtgen
from rtgen.runtime.cpu import thread_count

if TYPE_CHECKING:
    from rtgen.build.plan import BuildPlan

_DISTRIBUTIONS: Final = ("torch", "nvidia-modelopt", "onnxruntime-gpu", "onnxruntime")


def machine() -> str:
    """For people: the system, its architecture and the cores that this process may use."""
    cores = thread_count()
    return f"{platform.system()} {platform.machine()}, {cores} CPU core{'s' if cores > 1 else ''}"


def versions(plan: BuildPlan) -> dict[str, str]:
    """Versions of rtgen, of what computes and of the compiler."""
    found = {"rtgen": rtgen.__version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if plan.gpu.compiler != "onnxruntime":
        found[plan.gpu.compiler] = plan.compiler_version
    return found
