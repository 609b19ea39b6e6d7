"""Everything that a report's recipes share, and the work for each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import rtgen
from rtgen.build.chosen_prompts import is_calibrated
from rtgen.build.plan import plan_build, with_decoder
from rtgen.build.reference import ReferenceBackend
from rtgen.build.walk import build, graphs_and_weights, prepared
from rtgen.config.kv_cache import kv_cache_of
from rtgen.config.load import load_model, load_recipe
from rtgen.engine.package import open_package
from rtgen.errors import BuildError, MemoryPlanError, MissingDependencyError
from rtgen.fidelity.attributes import Classifier, EvaluationPrompt, read_evaluation
from rtgen.fidelity.clips import plan_clips
from rtgen.fidelity.described import kept_share, way, weight_bits
from rtgen.fidelity.findings import Build, FidelityReport, Recipe, Stage
from rtgen.fidelity.machine import machine, versions
from rtgen.fidelity.passes import velocity_snr
from rtgen.fidelity.perceptual import NotMeasuredError, load_network
from rtgen.fidelity.simulated_backend import sessions_of
from rtgen.fidelity.simulated_model import simulate
from rtgen.fidelity.sitting import Sitting
from rtgen.fidelity.verdicts import judged
from rtgen.models.dit import CausalVideoDiT
from rtgen.models.registry import load
from rtgen.quantize.output import WEIGHTS
from rtgen.quantize.result import read_result
from rtgen.runtime.backends import open_backend
from rtgen.runtime.text import PromptEncoder

if TYPE_CHECKING:
    from rtgen.build.request import BuildRequest
    from rtgen.config.recipe import Precision, RecipeConfig
    from rtgen.engine.manifest import ModelEntry
    from rtgen.fidelity.findings import Measured, Reference
    from rtgen.fidelity.pictures import Pictures
    from rtgen.progress import Progress
    from rtgen.quantize.result import QuantizationResult
    from rtgen.runtime.session import Array, Session

HOST: Final = ("cpu", "fp32")
"""GPU config and recipe of the package that text encoder, decoder and tokenizer come from."""
CHUNKS_OF_PASSES: Final = 2
"""Chunks whose passes are compared one by one: the second one reads the K/V ring that the first one wrote."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class FinishedReport:
    """A report, and the pictures of each recipe by name."""

    report: FidelityReport
    pictures: Mapping[str, Pictures]


class Studio:
    """One model on one target. Holds a package for the processor, the prompts, and FP16's clips once they are made."""

    def __init__(
        self, request: BuildRequest, reference: str, clips: int, lengths: Sequence[float], progress: Progress
    ) -> None:
        """``reference``: the recipe without quantization. Raises UsageError, and what a build raises."""
        self._request, self._progress = request, progress
        self._reference = with_recipe(request, reference)
        self._precision = load_recipe(reference).precision
        self._plan = plan_build(self._reference)
        self._size = self._plan.model.resolution.default
        config, weights = self._plan.model, self._plan.weights
        evaluation, note = _if_measured(lambda: read_evaluation(config, weights))
        prompts = (
            evaluation.prompts
            if evaluation
            else [EvaluationPrompt(prompt=prompt, values={}) for prompt in config.example_prompts]
        )
        plan = plan_clips(config, prompts, clips, lengths, self._size)
        classifier = None
        if evaluation is not None:
            assert config.evaluation is not None
            path = weights / config.evaluation.classifier
            classifier, note = _if_measured(lambda: Classifier(path, evaluation))
        self._attributes_note = note
        network, self._lpips_note = _if_measured(load_network)
        gpu, recipe = HOST
        host = replace(with_recipe(request, recipe), gpu=gpu, sizes=(), force=False)
        self._package = open_package(build(host, progress).package)
        self._plan, _ = prepared(self._reference, progress)  # with the weights as the build uses them
        self._sitting = Sitting(self._package, plan, network, classifier, evaluation)
        self._context: Array | None = None
        self._floor: tuple[Measured, ...] = ()
        self._references: tuple[Reference, ...] = ()

    def close(self) -> None:
        self._sitting.close()

    def report(self, names: Sequence[str], start: float) -> FinishedReport:
        """The report on recipes; ``start`` is when the work began, on the clock of ``time.perf_counter``."""
        clips, config = self._sitting.plan, self._plan.model
        reference_build, _ = self._built(self._reference)
        self._references = self._sitting.reference(self._exact(self._precision), self._watch("FP16"))
        self._floor = self._sitting.candidate(self._exact("float32"), self._watch("FP32"))
        done = [self._recipe(name) for name in names]
        report = FidelityReport(
            rtgen=rtgen.__version__,
            model=config.name,
            title=config.title,
            model_digest=self._package.manifest.model.digest,
            gpu=self._plan.gpu.name,
            precision=self._precision,
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine(),
            versions=versions(self._plan),
            size=clips.size,
            frames_per_second=clips.frames_per_second,
            seconds=round(time.perf_counter() - start, 1),
            clips=clips.clips,
            references=self._references,
            reference_build=reference_build,
            floor=self._floor,
            recipes=tuple(recipe for recipe, _ in done),
            lpips_note=self._lpips_note,
            attributes_note=self._attributes_note,
        )
        return FinishedReport(report, {recipe.name: pictures for recipe, pictures in done})

    def _recipe(self, name: str) -> tuple[Recipe, Pictures]:
        request, recipe = with_recipe(self._request, name), load_recipe(name)
        built, note = self._built(request)
        _, folder = prepared(request, self._progress)
        result, weights = read_result(folder), folder / WEIGHTS
        measured = self._sitting.candidate(self._denoiser(recipe, result, weights), self._watch(name))
        velocity, graph, graph_note = self._passes(request, result, weights)
        found = Recipe(
            name=name,
            title=recipe.title,
            way=way(recipe, result),
            weight_bits=weight_bits(result, weights),
            kept_share=round(kept_share(result), 4),
            build=built,
            build_note=note,
            velocity_snr_db=velocity,
            graph_snr_db=graph,
            graph_note=graph_note,
            layers=result.layers,
            measured=measured,
        )
        verdicts = judged(found, recipe.targets, self._references, self._floor, self._attributes_note)
        return found.model_copy(update={"verdicts": verdicts}), self._sitting.pictures(measured)

    def _built(self, request: BuildRequest) -> tuple[Build | None, str]:
        """The package of a recipe, or why it cannot be built here."""
        try:
            outcome = build(request, self._progress)
        except (BuildError, MemoryPlanError, MissingDependencyError) as error:
            return None, error.message
        files, entry = outcome.manifest.files, outcome.manifest.components["denoiser"]
        return Build(
            package_bytes=sum(file.size for file in files.values()),
            denoiser_bytes=sum(files[name].size for name in (entry.file, *entry.weights)),
            seconds=round(outcome.seconds, 2),
            cached=outcome.cached,
            stages=tuple(
                Stage(name=stage.name, seconds=round(stage.seconds, 2), cached=stage.cached) for stage in outcome.stages
            ),
        ), ""

    def _exact(self, precision: Precision) -> Callable[[], Session]:
        """Nothing is quantized."""
        return sessions_of(self._plan.model, simulate(self._loaded(), precision))

    def _denoiser(self, recipe: RecipeConfig, result: QuantizationResult, weights: Path) -> Callable[[], Session]:
        """As a recipe has it, weights, activations and K/V ring."""
        config = self._plan.model
        model = simulate(self._loaded(), recipe.precision, result, weights)
        return sessions_of(config, model, kv_cache_of(config, recipe))

    def _loaded(self) -> CausalVideoDiT:
        model, _ = load("denoiser", self._plan.model, self._plan.weights, "float32")
        assert isinstance(model, CausalVideoDiT)
        return model

    def _passes(
        self, request: BuildRequest, result: QuantizationResult, weights: Path
    ) -> tuple[float | None, float | None, str]:
        """Signal-to-noise of single passes against the unquantized model: of the simulation, and of the recipe's graph
        or why ONNX Runtime does not run it."""
        self._progress.update(f"passes: {request.recipe}", None)
        recipe = load_recipe(request.recipe or "")
        exact = self._exact(self._precision)
        velocity = self._compare(self._denoiser(recipe, result, weights)(), exact())
        try:
            backend = ReferenceBackend(*graphs_and_weights(request, self._progress))
            with closing(backend.open("denoiser")) as session:
                graph = self._compare(session, exact())
        except BuildError as error:
            graph, note = None, error.message
        else:
            note = ""
        self._progress.update(f"passes: {request.recipe}", 1.0)
        return velocity, graph, note

    def _compare(self, candidate: Session, reference: Session) -> float | None:
        entry: ModelEntry = self._package.manifest.model
        return velocity_snr(
            candidate, reference, entry, self._plan.sizes_at(self._size), self._encoded(), CHUNKS_OF_PASSES
        )

    def _encoded(self) -> Array:
        """The first prompt."""
        if self._context is None:
            with closing(open_backend(self._package)) as backend:
                encoder = PromptEncoder(self._package, backend, remember=False)
                self._context = encoder.context(encoder.tokens(self._sitting.plan.clips[0].prompt))
        return self._context

    def _watch(self, name: str) -> Callable[[float], None]:
        """What is told how far the clips of a variant are."""
        return lambda fraction: self._progress.update(f"clips: {name}", fraction)


def with_recipe(request: BuildRequest, name: str) -> BuildRequest:
    """The same request for another recipe; calibration prompts are for those that are calibrated."""
    model = with_decoder(load_model(request.model), request.decoder)
    prompts = request.calibration_prompts if is_calibrated(model, load_recipe(name)) else None
    return replace(request, recipe=name, calibration_prompts=prompts)


def _if_measured(make: Callable[[], Found]) -> tuple[Found | None, str]:
    """What ``make`` gives, or why it cannot."""
    try:
        return make(), ""
    except NotMeasuredError as error:
        return None, str(error)
