"""The last stage: compile or copy the graphs into a package folder, and say what memory they take."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rtgen.build.graphs import read_tables
from rtgen.build.kernels import compile_kernels
from rtgen.build.weight_places import loaded_bytes, weights_folder
from rtgen.data_types import ITEM_SIZES
from rtgen.engine.manifest import (
    CompilerEntry,
    Component,
    ComponentEntry,
    Manifest,
    MemoryPlan,
    ModelEntry,
    ProfileEntry,
    TargetEntry,
    resolve_shape,
)
from rtgen.engine.memory_plan import CONTEXT_BYTES, GIB, activations_at, check, estimate
from rtgen.export.ring_states import with_ring
from rtgen.runtime.profiles import pixels, serves

if TYPE_CHECKING:
    from rtgen.build.plan import BuildPlan
    from rtgen.config.model import ResolutionProfile, Size
    from rtgen.engine.builder import Range
    from rtgen.progress import Progress

SHARE_ACTIVATIONS = True
"""The engines of a package take turns on one stream. To overlap them, each must have memory of its own."""


@dataclass(frozen=True)
class Compiled:
    """Components in their package form, with the device memory each takes in bytes at the greatest size."""

    components: Mapping[Component, ComponentEntry]
    weights: Mapping[Component, int]
    activations: Mapping[Component, int]


def make_package(plan: BuildPlan, graphs: Path, folder: Path, progress: Progress) -> Manifest:
    """Fill ``folder`` and return its manifest, without the file hashes. Raises BuildError or MemoryPlanError."""
    tables = read_tables(graphs)
    check_memory(plan, tables, _loaded_bytes(plan, graphs, tables), dict.fromkeys(tables, 0))
    compiled = (
        _copy_graphs(plan, graphs, folder, tables)
        if not plan.gpu.builds_engines
        else _build_engines(plan, graphs, folder, tables, progress)
    )
    memory = check_memory(plan, tables, compiled.weights, compiled.activations)
    shutil.copyfile(plan.weights / plan.model.weights.tokenizer, folder / plan.model.weights.tokenizer)
    return describe_package(plan, compiled.components, memory)


def check_memory(
    plan: BuildPlan,
    tables: Mapping[Component, ComponentEntry],
    weights: Mapping[Component, int],
    activations: Mapping[Component, int],
    *,
    shares: bool = SHARE_ACTIVATIONS,
    context_bytes: int = CONTEXT_BYTES,
) -> MemoryPlan:
    """The memory plan at the greatest size. Raises MemoryPlanError, naming sizes that would fit."""

    def at(sizes: Mapping[str, int]) -> MemoryPlan:
        resized = dict(tables)
        if plan.fixed_ring is not None:  # a number in the tables, and another one in a package of these sizes
            resized["denoiser"] = with_ring(tables["denoiser"], plan.ring_at(sizes))
        scaled = {name: activations_at(count, plan.largest, sizes) for name, count in activations.items()}
        vram = round(plan.gpu.vram_gib * GIB)
        context = context_bytes if plan.gpu.compute_capability else 0
        return estimate(
            resized,
            sizes,
            weights=weights,
            activations=scaled,
            share_activations=shares,
            vram=vram,
            context=context,
        )

    whole = at(plan.largest)
    sizes = _sizes_to_offer(plan)
    check(whole, alternatives={f"--size {size[0]}x{size[1]}": at(plan.sizes_at(size)) for size in sizes})
    return whole


def _sizes_to_offer(plan: BuildPlan) -> list[Size]:
    """Sizes that the model is meant for, the greatest first; of those with equally many pixels only the first."""
    resolution = plan.model.resolution
    meant = [resolution.default, *(profile.opt for profile in resolution.profiles)]
    one_each = {pixels(size): size for size in reversed(meant)}
    return [one_each[count] for count in sorted(one_each, reverse=True)]


def _loaded_bytes(plan: BuildPlan, graphs: Path, tables: Mapping[Component, ComponentEntry]) -> dict[Component, int]:
    """Bytes of each component's weights in the recipe's precision, whatever they are stored in, or as quantized."""
    item = ITEM_SIZES[plan.recipe.precision]
    return {component: loaded_bytes(table, graphs, plan.weights, item) for component, table in tables.items()}


def _copy_graphs(plan: BuildPlan, graphs: Path, folder: Path, tables: Mapping[Component, ComponentEntry]) -> Compiled:
    """ONNX Runtime compiles when it loads: the package holds the graphs and the weights they refer to."""
    for table in tables.values():
        _copy_graph(plan, graphs, folder, table)
    return Compiled(tables, _loaded_bytes(plan, graphs, tables), dict.fromkeys(tables, 0))


def _copy_graph(plan: BuildPlan, graphs: Path, folder: Path, table: ComponentEntry) -> None:
    shutil.copyfile(graphs / table.file, folder / table.file)
    for name in table.weights:
        shutil.copyfile(weights_folder(table, graphs, plan.weights) / name, folder / name)


def _build_engines(
    plan: BuildPlan, graphs: Path, folder: Path, tables: Mapping[Component, ComponentEntry], progress: Progress
) -> Compiled:
    from rtgen.engine.builder import EngineJob, build_engine

    assert plan.gpu.compiler == "tensorrt_rtx" or plan.gpu.compiler == "tensorrt"
    assert plan.gpu.compute_capability is not None
    components: dict[Component, ComponentEntry] = {}
    weights: dict[Component, int] = {}
    activations: dict[Component, int] = {}
    kernels = compile_kernels(graphs, plan.gpu.compute_capability, folder, progress)
    for component, table in tables.items():
        if table.runs_on == "host":
            _copy_graph(plan, graphs, folder, table)
            components[component], weights[component], activations[component] = table, 0, 0
            continue
        file = f"{component}.engine"
        job = EngineJob(
            component,
            plan.gpu.compiler,
            graphs / table.file,
            weights_folder(table, graphs, plan.weights),
            folder / file,
            plan.gpu.compute_capability,
            tuple(shape_ranges(plan, table, profile) for profile in plan.profiles) if is_dynamic(table) else (),
            kernels,
        )
        result = build_engine(job, progress, stage=f"engine: {component.replace('_', ' ')}")
        components[component] = table.model_copy(update={"file": file, "weights": ()})
        weights[component], activations[component] = result.weights_bytes, result.activation_bytes
    return Compiled(components, weights, activations)


def is_dynamic(table: ComponentEntry) -> bool:
    """Whether any input's shape depends on the frame size."""
    return any(isinstance(size, str) for tensor in table.inputs for size in tensor.shape)


def shape_ranges(plan: BuildPlan, table: ComponentEntry, profile: ResolutionProfile) -> dict[str, Range]:
    """Smallest, best and greatest shape of every dynamic input under a profile."""

    def shape(dimensions: tuple[int | str, ...], size: Size) -> tuple[int, ...]:
        return resolve_shape(dimensions, plan.sizes_at(size))

    return {
        tensor.name: (
            shape(tensor.shape, profile.min),
            shape(tensor.shape, profile.opt),
            shape(tensor.shape, profile.max),
        )
        for tensor in table.inputs
        if any(isinstance(size, str) for size in tensor.shape)
    }


def default_size(plan: BuildPlan) -> Size:
    """The model's own where the package serves it, else the one nearest in pixels that a profile is tuned for."""
    wanted = plan.model.resolution.default
    if any(serves(profile, wanted) for profile in plan.profiles):
        return wanted
    return min((profile.opt for profile in plan.profiles), key=lambda size: abs(pixels(size) - pixels(wanted)))


def model_entry(plan: BuildPlan) -> ModelEntry:
    """What the runtime needs to know of the plan's model."""
    from rtgen.runtime.schedule import sigmas

    model = plan.model
    return ModelEntry(
        name=model.name,
        digest=plan.model_digest,
        frames_per_second=model.frames_per_second,
        example_prompts=model.example_prompts,
        default_size=default_size(plan),
        size_step=model.size_step,
        latent_channels=model.autoencoder.latent_channels,
        spatial_stride=model.autoencoder.spatial_stride,
        temporal_stride=model.autoencoder.temporal_stride,
        decoder=model.decoder,
        dropped_frames=model.dropped_frames,
        chunk=model.cache.chunk,
        window=model.cache.window,
        sink=model.cache.sink,
        position_limit=model.cache.position_limit,
        sigmas=sigmas(model.schedule.timesteps, model.schedule.shift),
        sampler=model.schedule.sampler,
        rope_split=model.denoiser.rope_split,
        rope_theta=model.denoiser.rope_theta,
        prompt_tokens=model.text_encoder.max_tokens,
        tokenizer=model.weights.tokenizer,
    )


def describe_package(
    plan: BuildPlan,
    components: Mapping[Component, ComponentEntry],
    memory: MemoryPlan,
    *,
    shares: bool = SHARE_ACTIVATIONS,
) -> Manifest:
    """The manifest of a package; the file table is filled in when it is written."""
    import rtgen

    return Manifest(
        key=plan.package_key,
        rtgen=rtgen.__version__,
        model=model_entry(plan),
        target=TargetEntry(
            gpu=plan.gpu.name,
            compute_capability=plan.gpu.compute_capability,
            vram_bytes=round(plan.gpu.vram_gib * GIB),
        ),
        recipe=plan.recipe.name,
        kv_bits=plan.recipe.kv_cache.bits,
        compiler=CompilerEntry(name=plan.gpu.compiler, version=plan.compiler_version),
        profiles=tuple(ProfileEntry(min=p.min, opt=p.opt, max=p.max) for p in plan.profiles),
        components=components,
        share_activations=shares,
        memory_plan=memory,
        files={},
    )
