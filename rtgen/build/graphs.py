"""The stages between weights and compiler: exported graphs, then graphs with plugins in place.

A stage folder holds one ONNX file a component and ``components.json`` with the tensor tables. Weights stay in the
checkpoint's files; the graphs refer to them by file name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rtgen.engine.manifest import Component, ComponentEntry
from rtgen.export.ring_states import with_ring
from rtgen.models.registry import COMPONENTS

if TYPE_CHECKING:
    import onnx_ir as ir

    from rtgen.build.plan import BuildPlan
    from rtgen.export.ranges import DecoderRanges
    from rtgen.progress import Progress

TABLES = "components.json"


def write_tables(folder: Path, tables: Mapping[Component, ComponentEntry]) -> None:
    content = {name: table.model_dump(mode="json") for name, table in tables.items()}
    (folder / TABLES).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")


def read_tables(folder: Path) -> dict[Component, ComponentEntry]:
    """The tensor tables of a stage folder."""
    content = json.loads((folder / TABLES).read_text(encoding="utf-8"))
    return {name: ComponentEntry.model_validate(content[name]) for name in COMPONENTS}


def make_export(plan: BuildPlan, ranges: Path | None, folder: Path, progress: Progress) -> None:
    """Export every component in the recipe's precision. ``ranges``: the stage with those of a decoder that computes on
    codes. Raises MissingDependencyError without ``rtgen[compile]``, PackageInvalidError for ranges of another decoder.
    """
    from rtgen.build.toolchain import installed_toolchain

    progress.update("export", 0.0, "loading torch")
    installed_toolchain()
    from rtgen.export.ranges import DecoderRanges
    from rtgen.models.registry import prepare

    observed = None if ranges is None else DecoderRanges.read(ranges)
    for component in COMPONENTS:
        prepare(component, plan.model, plan.weights)  # refuse misfit weights before the first export
    tables: dict[Component, ComponentEntry] = {}
    for position, component in enumerate(COMPONENTS):
        progress.update("export", position / len(COMPONENTS), component.replace("_", " "))
        tables[component] = export_one(plan, component, folder, observed if component == "decoder" else None)
    write_tables(folder, tables)
    progress.update("export", 1.0)


def export_one(
    plan: BuildPlan, component: Component, folder: Path, ranges: DecoderRanges | None = None
) -> ComponentEntry:
    """Write a component's graph into ``folder``; its tensor table. ``ranges``: of a decoder that computes on codes."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    from rtgen.export.components import export_component, weight_names
    from rtgen.models.registry import load, outline
    from rtgen.passes.base import run_passes
    from rtgen.passes.bind_weights import BindWeights
    from rtgen.passes.gather_stored import GatherStored
    from rtgen.passes.simplify import Simplify

    precision, on_host = plan.precision_of(component), plan.runs_on(component) == "host"
    # In float32 the weights of a host component would not fit in memory, and a graph holds none.
    module, index = (outline if on_host else load)(component, plan.model, plan.weights, precision)
    graph = export_component(component, plan.model, module, precision, plan.kv_cache, ranges)
    names = weight_names(module, graph)
    stored = {initializer: index[name] for initializer, name in names.items()}
    # The exporter's stack traces hold this machine's paths.
    forget_origin = ClearMetadataAndDocStringPass()
    passes: list[ir.passes.PassBase] = [Simplify(frozenset(names)), BindWeights(stored), forget_origin]
    run_passes(graph.model, [*passes, GatherStored()] if on_host else passes)
    file = f"{component}.onnx"
    ir.save(graph.model, folder / file)
    weights = tuple(sorted({place.file.name for place in stored.values()}))
    return ComponentEntry(
        file=file,
        weights=weights,
        inputs=graph.inputs,
        outputs=graph.outputs,
        states=graph.states,
        runs_on=plan.runs_on(component),
    )


def make_graphs(plan: BuildPlan, exported: Path, folder: Path, progress: Progress) -> None:
    """Run the passes that prepare exported graphs for the compiler of the plan's GPU."""
    import onnx_ir as ir

    from rtgen.build.kernels import write_uses
    from rtgen.build.weight_places import pass_on
    from rtgen.passes.base import run_passes
    from rtgen.passes.mark_plugins import PluginNode, marked_nodes
    from rtgen.plugins.registry import PLUGINS

    tables = read_tables(exported)
    marked: list[PluginNode] = []
    for position, (component, table) in enumerate(tables.items()):
        progress.update("passes", position / len(tables), component.replace("_", " "))
        passes = compiler_passes(plan, component, table)
        graph = run_passes(ir.load(exported / table.file), passes)
        marked += marked_nodes(graph, PLUGINS.values())
        ir.save(graph, folder / table.file)
        if component == "denoiser" and plan.fixed_ring is not None:
            tables[component] = with_ring(table, plan.fixed_ring)
        pass_on(table, exported, folder)
    write_uses(folder, marked)
    write_tables(folder, tables)
    progress.update("passes", 1.0)


def compiler_passes(plan: BuildPlan, component: Component, table: ComponentEntry) -> list[ir.passes.PassBase]:
    """What makes a component's graph ready for the compiler of the plan's GPU."""
    from rtgen.passes.attach_functions import AttachFunctions
    from rtgen.passes.broadcast_mask import BroadcastMask
    from rtgen.passes.decompose_attention import DecomposeAttention
    from rtgen.passes.fix_dimension import FixDimension
    from rtgen.passes.fuse_attention_conv import FuseAttentionConv
    from rtgen.passes.fuse_w4a4_epilogues import FuseW4A4Epilogues
    from rtgen.passes.mark_plugins import MarkPlugins
    from rtgen.plugins.registry import PLUGINS

    passes: list[ir.passes.PassBase] = [AttachFunctions()]
    if plan.gpu.builds_engines and table.runs_on == "device":
        fused, marked = (FuseAttentionConv(), FuseW4A4Epilogues()), MarkPlugins(PLUGINS.values())
        passes = [*fused, *passes, marked, BroadcastMask(), DecomposeAttention()]
    if component == "denoiser" and plan.fixed_ring is not None:
        passes.append(FixDimension("ring", plan.fixed_ring))
    return passes
