"""Does a package compute what the graphs it was built from say? Its backend against ONNX Runtime on the processor."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rtgen.build.agreement import CODED_MEAN, ROUNDED_MEAN, Agreement, compare, precision_of, require_polygraphy
from rtgen.build.lockstep import LockstepBackend
from rtgen.build.plan import BuildPlan, plan_build
from rtgen.build.reference import ReferenceBackend
from rtgen.build.request import BuildRequest
from rtgen.build.ring_values import VALUES
from rtgen.build.sizes import sizes_of
from rtgen.build.walk import graphs_and_weights
from rtgen.config.load import load_model
from rtgen.engine.package import Package, open_package
from rtgen.errors import PackageMismatchError
from rtgen.models.registry import COMPONENTS
from rtgen.runtime.backends import check_gpu, open_backend
from rtgen.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from rtgen.config.recipe import RecipeConfig
    from rtgen.engine.manifest import Manifest
    from rtgen.progress import Progress
    from rtgen.runtime.session import Array

CHUNKS = 2
"""The second chunk reads what the first left in the K/V ring and in the decoder."""


@dataclass(frozen=True)
class TensorRow:
    """The worst case of one tensor over all runs, as :class:`rtgen.build.agreement.Agreement` measures it."""

    component: str
    tensor: str
    max_abs: float
    max_rel: float
    passed: bool


@dataclass(frozen=True)
class VerifyReport:
    """Every output and state of every component."""

    rows: tuple[TensorRow, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)


def compare_with_onnxruntime(
    package: Path,
    progress: Progress,
    *,
    weights: Path | None = None,
    calibration_prompts: Path | None = None,
    store: Path | None = None,
) -> VerifyReport:
    """Run a package on this machine beside the graphs it was built from, on equal inputs, and compare.

    The graphs are those of the build that the manifest describes: found in ``store`` (or in the installation), or
    exported again from ``weights`` (default: the model's own), and calibrated again on ``calibration_prompts`` if the
    recipe is. Both sides are driven by the pipeline: the example
    prompt through the text encoder, two chunks of seeded noise through every denoise pass and the clean pass, and the
    latents through the decoder, at the package's default size. Inputs are the same on both sides; the K/V ring and the
    decoder's past frames are each side's own, and are compared at the end.

    Tolerances (see ``rtgen.build.agreement``): the greatest difference, against the tensor's greatest magnitude, is at
    most 1e-3 for packages in float32 and 2e-2 for float16; of keys and values in codes the mean difference is at most
    1e-2 of it, and 2e-2 of all that comes out of a denoiser whose layers round their inputs at run time; 8-bit frames
    differ by at most 2 levels in the mean and, in 99.9 % of the values, by at most 16.

    Raises PackageInvalidError for a broken package, NoGpuError, PackageMismatchError or MemoryPlanError when it cannot
    run here, PackageMismatchError when its graphs cannot be made again, MissingDependencyError without Polygraphy.
    """
    require_polygraphy()
    opened = open_package(package, progress)
    if opened.manifest.target.compute_capability is not None:
        check_gpu(opened.manifest)  # before graphs are made in vain
    plan, request = plan_of(opened.manifest, weights, store, calibration_prompts)
    graphs, files = graphs_and_weights(request, progress)
    return compare_package(opened, graphs, files, progress, rounds=_rounds(plan.recipe))


def plan_of(
    manifest: Manifest, weights: Path | None, store: Path | None, calibration_prompts: Path | None = None
) -> tuple[BuildPlan, BuildRequest]:
    """The build that led to a package. Raises PackageMismatchError unless it would lead to it again."""
    model = manifest.model
    sizes = sizes_of(load_model(model.name), manifest.profiles)
    request = BuildRequest(
        manifest.target.gpu,
        model.name,
        manifest.recipe,
        sizes,
        weights,
        store,
        decoder=model.decoder,
        calibration_prompts=calibration_prompts,
        kv_bits=manifest.kv_bits,
        backend=manifest.compiler.name,
    )
    plan = plan_build(request)
    again = f"rtgen build --gpu {manifest.target.gpu} --model {manifest.model.name}"
    if plan.model_digest != manifest.model.digest:
        raise PackageMismatchError(
            f"the package was built from other weights than those in {plan.weights}, or from another config of "
            f"{manifest.model.name}",
            hint=f"--weights names the folder it was built from; {again} makes one from these",
        )
    if plan.package_key != manifest.key:
        raise PackageMismatchError(
            "the package was built with other settings, or by another version of rtgen, its exporter or its compiler",
            hint=f"{again} makes it again; if it was calibrated on prompts of your own, --calib-prompts names them",
        )
    return plan, request


def _rounds(recipe: RecipeConfig) -> bool:
    """Whether the denoiser's layers find the scales of their inputs at run time."""
    quantization = recipe.quantization
    return quantization is not None and quantization.activations is not None and not quantization.is_calibrated


def compare_package(
    package: Package, graphs: Path, weights: Path, progress: Progress, *, rounds: bool = False
) -> VerifyReport:
    """Run an open package beside ``graphs``, whose files refer to those in ``weights``. Raises as above.

    ``rounds``: whether the denoiser's layers round their inputs at run time.
    """
    manifest = package.manifest
    model, precision = manifest.model, precision_of(manifest)
    found: dict[tuple[str, str], Agreement] = {}

    def observe(component: str, tensor: str, candidate: Array, reference: Array) -> None:
        mean = CODED_MEAN if tensor.startswith(VALUES) else ROUNDED_MEAN if rounds and component == "denoiser" else None
        agreement = compare(tensor, candidate, reference, precision, mean)
        before = found.get((component, tensor), agreement)
        found[component, tensor] = agreement.worst(before)

    progress.update("compare", 0.0, "loading")
    reference = ReferenceBackend(graphs, weights)
    with closing(LockstepBackend(open_backend(package), reference, observe)) as backend:
        pipeline = Pipeline(package, backend, remember_prompts=False)  # the text encoder is to be compared too
        frames = CHUNKS * model.chunk * model.temporal_stride - model.dropped_frames
        made = 0
        for chunk in pipeline.stream(model.example_prompts[0], frames=frames):
            made += len(chunk)
            progress.update("compare", made / frames, f"{made}/{frames} frames")
        backend.observe_states()
    return VerifyReport(_rows(found))


def _rows(found: dict[tuple[str, str], Agreement]) -> tuple[TensorRow, ...]:
    """In the order of the pipeline; each component's results before its states."""
    ordered = sorted(found.items(), key=lambda item: [*COMPONENTS].index(item[0][0]))  # type: ignore[arg-type]
    return tuple(
        TensorRow(component, tensor, agreement.max_abs, agreement.max_rel, agreement.passed)
        for (component, tensor), agreement in ordered
    )
