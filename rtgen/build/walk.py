"""The walk: config, export, passes, engines, package. Each stage is looked up in the store before it is made."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rtgen.build.calibration import CODES, RANGES, STREAMS, make_codes, make_ranges, make_streams
from rtgen.build.engines import make_package
from rtgen.build.graphs import make_export, make_graphs
from rtgen.build.plan import BuildPlan, plan_build
from rtgen.build.quantized import STAGE, make_quantized
from rtgen.build.torch_package import make_torch_package
from rtgen.build.weights import convert_published
from rtgen.engine.package import read_manifest

if TYPE_CHECKING:
    from rtgen.build.request import BuildRequest
    from rtgen.engine.manifest import Manifest
    from rtgen.progress import Progress


@dataclass(frozen=True)
class StageTiming:
    """How long a stage took, and whether the store had it."""

    name: str
    seconds: float
    cached: bool


@dataclass(frozen=True)
class BuildOutcome:
    """A package that is in the store."""

    package: Path
    key: str
    cached: bool
    seconds: float
    manifest: Manifest
    stages: tuple[StageTiming, ...]


def package_key(request: BuildRequest) -> str:
    """The key of the package that a request leads to. Raises what :func:`rtgen.build.plan.plan_build` raises."""
    return plan_build(request).package_key


def build(request: BuildRequest, progress: Progress) -> BuildOutcome:
    """Make a package, or find it. Raises RtgenError subclasses; nothing unfinished is ever visible in the store."""
    start = time.perf_counter()
    plan = plan_build(request)
    if request.force:
        _forget(plan)
    walk = _Walk(plan, progress)
    path, cached = plan.store.package(
        plan.model.name,
        plan.gpu.name,
        plan.package_key,
        walk.fill_package,
        on_wait=walk.waiting,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    if not cached:
        done = sum(stage.seconds for stage in walk.timings)
        walk.timings.append(StageTiming("engines", seconds - done, cached=False))
    return BuildOutcome(path, plan.package_key, cached, seconds, read_manifest(path), tuple(walk.timings))


def export(request: BuildRequest, progress: Progress) -> Path:
    """The folder with the graphs that a request's compiler would be given."""
    return graphs_and_weights(request, progress)[0]


def graphs_and_weights(request: BuildRequest, progress: Progress) -> tuple[Path, Path]:
    """The folder with a request's graphs, and the one with the weight files that they refer to."""
    walk = _Walk(plan_build(request), progress)
    return walk.graphs(), walk.converted().weights


def prepared(request: BuildRequest, progress: Progress) -> tuple[BuildPlan, Path]:
    """A request's plan with the weights as the build uses them, and the folder of graphs that passes start from: with
    quantized weights, and what was decided about them, where the recipe says so."""
    walk = _Walk(plan_build(request), progress)
    return walk.converted(), walk.prepared()


def with_weights(request: BuildRequest, progress: Progress) -> BuildPlan:
    """A request's plan with the weights as the build uses them; published ones are converted first."""
    return _Walk(plan_build(request), progress).converted()


def _forget(plan: BuildPlan) -> None:
    for package in plan.store.packages():
        if (package.model, package.gpu, package.key) == (plan.model.name, plan.gpu.name, plan.package_key):
            plan.store.remove(package)


class _Walk:
    """Stages of one plan, timed."""

    def __init__(self, plan: BuildPlan, progress: Progress) -> None:
        self.plan, self.progress = plan, progress
        self.timings: list[StageTiming] = []
        self._weights: Path | None = None

    def waiting(self) -> None:
        self.progress.note("another rtgen is building this already: waiting for it")

    def fill_package(self, folder: Path) -> Manifest:
        """Make the package in ``folder``."""
        plan = self.plan
        if plan.gpu.compiler == "torch":
            codes = None if plan.recipe.quantization is None else self.codes()
            return make_torch_package(self.converted(), codes, folder, self.progress)
        return make_package(self.converted(), self.graphs(), folder, self.progress)

    def converted(self) -> BuildPlan:
        """The plan with the weights as the build uses them."""
        plan, progress = self.plan, self.progress
        sources = plan.published
        if sources is None:
            return plan
        if self._weights is None:
            self._weights = self._stage(
                "weights",
                plan.weights_key,
                lambda folder: convert_published(plan.model, dict(sources), folder, progress),
            )
        return replace(plan, weights=self._weights)

    def graphs(self) -> Path:
        plan, progress = self.plan, self.progress
        return self._stage(
            "graphs", plan.graphs_key, lambda folder: make_graphs(plan, self.prepared(), folder, progress)
        )

    def prepared(self) -> Path:
        """The exported graphs, with their weights quantized where the recipe says so."""
        plan, progress = self.plan, self.progress
        if plan.recipe.quantization is None:
            return self.exported()
        return self._stage(
            STAGE, plan.quantize_key, lambda folder: make_quantized(self.codes(), self.exported(), folder, progress)
        )

    def codes(self) -> Path:
        """The quantized weights and what was decided about them, for a recipe that has any."""
        plan, progress = self.plan, self.progress
        assert plan.recipe.quantization is not None
        is_calibrated = plan.recipe.quantization.is_calibrated

        def make(folder: Path) -> None:
            make_codes(self.converted(), self.streams() if is_calibrated else None, folder, progress)

        return self._stage(CODES, plan.codes_key, make)

    def ranges(self) -> Path:
        """What the decoder's convolutions were seen to take and give, where it computes on codes."""

        def make(folder: Path) -> None:
            make_ranges(self.converted(), self.streams(), folder, self.progress)

        return self._stage(RANGES, self.plan.ranges_key, make)

    def streams(self) -> Path:
        """The recorded streams that recipes are calibrated on."""
        plan, progress = self.plan, self.progress
        return self._stage(
            STREAMS, plan.calibration_key, lambda folder: make_streams(self.converted(), folder, progress)
        )

    def exported(self) -> Path:
        plan, progress = self.plan, self.progress

        def make(folder: Path) -> None:
            make_export(self.converted(), self.ranges() if plan.has_coded_decoder else None, folder, progress)

        return self._stage("export", plan.export_key, make)

    def _stage(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        made = False

        def make_noted(folder: Path) -> None:
            nonlocal made
            made = True
            make(folder)

        start, inner = time.perf_counter(), sum(stage.seconds for stage in self.timings)
        path = self.plan.store.stage(kind, key, make_noted, on_wait=self.waiting)
        nested = sum(stage.seconds for stage in self.timings) - inner
        self.timings.append(StageTiming(kind, time.perf_counter() - start - nested, cached=not made))
        return path
