"""What ``rtgen bench pipeline`` compares: ways to open a pipeline of one model. A new backend is a new row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rtgen.build.plan import BuildPlan
    from rtgen.build.request import BuildRequest
    from rtgen.engine.manifest import Size
    from rtgen.engine.package import Package
    from rtgen.progress import Progress
    from rtgen.runtime.session import Backend

HOST: Final = ("cpu", "fp32")
"""GPU config and recipe of a plan that can be made on every machine."""


@dataclass(frozen=True)
class Configuration:
    """One way; both functions raise what builds and backends raise."""

    prepare: Callable[[BuildRequest, Size, Progress], Path]
    """Makes whatever is opened, before anything is timed, and says where it is."""
    open: Callable[[BuildRequest, Path], tuple[Package, Backend]]
    """Opens what was prepared; called in a process of its own."""
    has_recipes: bool = True
    """Whether the recipe makes a difference."""


def prepare_package(request: BuildRequest, size: Size, progress: Progress) -> Path:
    """The folder of the package that ``rtgen run`` would take, which is built if the store lacks it."""
    from rtgen.build.fitting import build_fitting
    from rtgen.build.lookup import find_package
    from rtgen.runtime.select import require_device

    require_device(request.gpu)
    found = find_package(request, size)
    return build_fitting(request, progress, serving=(size,)).package if found is None else found.path


def open_built(request: BuildRequest, path: Path) -> tuple[Package, Backend]:
    """A package with the backend that it was built for."""
    from rtgen.engine.package import open_package
    from rtgen.runtime.backends import open_backend

    package = open_package(path)
    return package, open_backend(package)


def prepare_eager(request: BuildRequest, size: Size, progress: Progress) -> Path:
    """The folder of the weights, converted if need be."""
    from rtgen.bench.kernels import require_gpu
    from rtgen.build.walk import with_weights

    if _is_for_gpu(request):
        require_gpu()
    return with_weights(_on_host(request), progress).weights


def open_eager(request: BuildRequest, path: Path) -> tuple[Package, Backend]:
    """The model's modules in torch, and a package that has nothing but the model's description and its tokenizer."""
    from rtgen.bench.eager import EagerBackend
    from rtgen.build.plan import plan_build

    plan = replace(plan_build(_on_host(request)), weights=path)
    return _description(plan, request), EagerBackend(plan.model, path, on_gpu=_is_for_gpu(request))


BASELINE: Final = "eager"
CONFIGURATIONS: Final[Mapping[str, Configuration]] = {
    BASELINE: Configuration(prepare_eager, open_eager, has_recipes=False),
    "package": Configuration(prepare_package, open_built),
}


def _description(plan: BuildPlan, request: BuildRequest) -> Package:
    from rtgen.bench.eager import text_encoder_table
    from rtgen.build.engines import describe_package
    from rtgen.config.load import load_gpu
    from rtgen.engine.manifest import FileEntry, MemoryPlan
    from rtgen.engine.package import Package

    target, tokenizer = load_gpu(request.gpu), plan.weights / plan.model.weights.tokenizer
    memory = MemoryPlan(weights=0, activations=0, kv_ring=0, decoder_state=0, io=0, context=0, vram=1)
    manifest = describe_package(plan, {"text_encoder": text_encoder_table(plan.model)}, memory)
    entry = FileEntry(size=tokenizer.stat().st_size, sha256=plan.store.file_digest(tokenizer))
    place = manifest.target.model_copy(update={"gpu": target.name, "compute_capability": target.compute_capability})
    update = {"files": {tokenizer.name: entry}, "target": place}
    return Package(plan.weights, manifest.model_copy(update=update))


def _is_for_gpu(request: BuildRequest) -> bool:
    from rtgen.config.load import load_gpu

    return load_gpu(request.gpu).compute_capability is not None


def _on_host(request: BuildRequest) -> BuildRequest:
    gpu, recipe = HOST
    return replace(request, gpu=gpu, recipe=recipe, kv_bits=None, calibration_prompts=None, force=False)
