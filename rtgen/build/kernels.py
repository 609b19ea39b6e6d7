"""The kernels of a package: which its graphs ask for, and their cubins for the package's GPU."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rtgen.plugins.compiler import compile_kernel
from rtgen.plugins.cubins import FOLDER, write_cubin
from rtgen.plugins.registry import PLUGINS

if TYPE_CHECKING:
    from rtgen.passes.mark_plugins import PluginNode
    from rtgen.plugins.base import KernelSource
    from rtgen.progress import Progress

USES = "plugins.json"
"""In a folder of graphs: every plugin that TensorRT takes, with each set of attributes once. Engines are built without
ONNX being installed."""


def write_uses(folder: Path, nodes: Iterable[PluginNode]) -> None:
    uses = {json.dumps({"plugin": node.plugin, "attributes": dict(node.attributes)}, sort_keys=True) for node in nodes}
    (folder / USES).write_text(f"[{', '.join(sorted(uses))}]\n", encoding="utf-8")


def sources(graphs: Path, compute_capability: str) -> tuple[KernelSource, ...]:
    """What the plugins of a folder of graphs are compiled from for a GPU, each source once."""
    found: dict[str, KernelSource] = {}
    for use in json.loads((graphs / USES).read_text(encoding="utf-8")):
        kernel = PLUGINS[use["plugin"]].kernel
        assert kernel is not None  # only such nodes are marked
        found |= {source.name: source for source in kernel.sources(use["attributes"], compute_capability)}
    return tuple(found[name] for name in sorted(found))


def compile_kernels(graphs: Path, compute_capability: str, folder: Path, progress: Progress) -> Path:
    """Write ``kernels/*.cubin`` into a package folder and return their folder.

    Raises BuildError for a source that does not compile, MissingDependencyError without NVRTC.
    """
    wanted, target = sources(graphs, compute_capability), folder / FOLDER
    for position, source in enumerate(wanted):
        progress.update("kernels", position / len(wanted), source.name)
        write_cubin(target, source.name, compile_kernel(source, compute_capability).code)
    if wanted:
        progress.update("kernels", 1.0)
    return target
