"""Which plugins are measured, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from rtgen.bench.result import Measurement
from rtgen.errors import MissingDependencyError, NoGpuError, UsageError
from rtgen.plugins.base import Plugin
from rtgen.plugins.registry import PLUGINS
from rtgen.progress import Progress


@dataclass(frozen=True)
class Bench:
    """Plugins that are measured together."""

    plugins: tuple[str, ...]
    module: str
    """With ``measure(repeats) -> list[Measurement]``, which needs torch and a CUDA GPU."""


BENCHES: Final[Mapping[str, Bench]] = {
    "w4a4_linear": Bench(("W4A4Linear", "W4A4LinearGated"), "rtgen.bench.w4a4_linear"),
    "attention_conv": Bench(("AttentionConv",), "rtgen.bench.attention_conv"),
    "kv_cache_attention": Bench(("QuantizedKVCacheAttention",), "rtgen.bench.kv_cache_attention"),
}

REPEATS: Final = 50


def measure(names: Sequence[str], repeats: int, progress: Progress) -> list[Measurement]:
    """Time the plugins of these names, all of them if there are none, each beside its baseline in the same run.

    Raises UsageError for a name that is not measured, MissingDependencyError without torch, NoGpuError without a GPU.
    """
    chosen = chosen_names(names)
    require_gpu()
    results: list[Measurement] = []
    for position, name in enumerate(chosen):
        progress.update("bench", position / len(chosen), name)
        results += measurer(name)(repeats)
    progress.update("bench", 1.0)
    return results


def measurer(name: str) -> Callable[[int], list[Measurement]]:
    """The function that measures a plugin."""
    found: Callable[[int], list[Measurement]] = import_module(BENCHES[name].module).measure
    return found


def chosen_names(names: Sequence[str]) -> list[str]:
    """Those asked for, or all. Raises UsageError for one that is not measured."""
    for name in names:
        if name not in BENCHES:
            raise UsageError(f"no plugin called '{name}' is measured", hint=f"one of: {', '.join(BENCHES)}")
    return list(names) or list(BENCHES)


def plugins(names: Sequence[str]) -> list[Plugin]:
    """The plugins of these names, or all, that are in the registry. Raises UsageError."""
    wanted = [plugin for name in chosen_names(names) for plugin in BENCHES[name].plugins]
    return [PLUGINS[name] for name in wanted if name in PLUGINS]


def require_gpu() -> Any:
    """torch, with a CUDA GPU that it can use. Raises MissingDependencyError or NoGpuError."""
    if find_spec("torch") is None:
        raise MissingDependencyError(
            "measuring kernels needs torch, which is not installed", hint='pip install "rtgen[compile]"'
        )
    import torch

    if not torch.cuda.is_available():
        raise NoGpuError(
            "measuring kernels needs a CUDA GPU that torch can use",
            hint="rtgen bench kernels --computed shows what is known without one",
        )
    return torch
