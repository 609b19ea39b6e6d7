"""A package for the torch backend: the weights as they are stored, and what describes the modules."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rtgen.build.engines import check_memory, describe_package
from rtgen.build.weight_places import loaded_bytes
from rtgen.data_types import ITEM_SIZES
from rtgen.engine.manifest import Component, ComponentEntry, Manifest
from rtgen.engine.memory_plan import GIB
from rtgen.models.registry import COMPONENTS, checkpoint_files, prepare

if TYPE_CHECKING:
    from rtgen.build.plan import BuildPlan
    from rtgen.progress import Progress
    from rtgen.torch_backend.description import Description

STAGE: Final = "package"
CONTEXT_BYTES: Final = GIB
"""An allowance, not a measurement: a CUDA context with cuBLAS and cuDNN, the upper end of what
``rtgen.engine.memory_plan.CONTEXT_BYTES`` cites."""


def make_torch_package(plan: BuildPlan, codes: Path | None, folder: Path, progress: Progress) -> Manifest:
    """Fill ``folder`` and return its manifest, without the file hashes.

    ``codes``: the stage with the denoiser's quantized weights, for a recipe that quantizes. Nothing is compiled, and
    no GPU is needed. Raises MemoryPlanError, CheckpointError, PackageInvalidError for a recipe's layers that the
    backend cannot compute.
    """
    from rtgen.quantize.result import read_result
    from rtgen.torch_backend.activations import peak_activations
    from rtgen.torch_backend.description import describe, write_description

    layers = () if codes is None else read_result(codes).layers
    description = describe(plan.model, plan.recipe.precision, plan.kv_cache, layers)
    entries = {component: _entry(plan, component, description, codes) for component in COMPONENTS}
    item = ITEM_SIZES[plan.recipe.precision]
    weights = {name: loaded_bytes(entry, codes or folder, plan.weights, item) for name, entry in entries.items()}
    progress.update(STAGE, 0.0, "memory plan")
    activations = {name: peak_activations(name, entry, description, plan.largest) for name, entry in entries.items()}
    memory = check_memory(plan, entries, weights, activations, shares=False, context_bytes=CONTEXT_BYTES)
    for position, (name, entry) in enumerate(entries.items()):
        progress.update(STAGE, position / len(entries), name.replace("_", " "))
        for file in entry.weights:
            shutil.copyfile(_source(file, codes, plan.weights), folder / file)
    write_description(description, folder)
    shutil.copyfile(plan.weights / plan.model.weights.tokenizer, folder / plan.model.weights.tokenizer)
    progress.update(STAGE, 1.0)
    return describe_package(plan, entries, memory, shares=False)


def _entry(plan: BuildPlan, component: Component, description: Description, codes: Path | None) -> ComponentEntry:
    from rtgen.quantize.output import COMPONENT, WEIGHTS
    from rtgen.torch_backend.description import FILE_NAME
    from rtgen.torch_backend.tables import table_of

    if component == COMPONENT and codes is not None:
        files: tuple[str, ...] = (WEIGHTS,)
    else:
        prepare(component, plan.model, plan.weights)  # refuses misfit weights before anything is copied
        files = tuple(file.name for file in checkpoint_files(component, plan.model, plan.weights))
    table = table_of(component, description)
    return ComponentEntry(
        file=FILE_NAME,
        weights=files,
        inputs=table.inputs,
        outputs=table.outputs,
        states=table.states,
        runs_on=plan.runs_on(component),
    )


def _source(file: str, codes: Path | None, checkpoint: Path) -> Path:
    """Where a weight file of the package comes from."""
    beside = None if codes is None else codes / file
    return beside if beside is not None and beside.is_file() else checkpoint / file
