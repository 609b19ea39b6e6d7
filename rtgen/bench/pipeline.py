"""Whole pipelines of a model beside plain eager torch: the same weights, prompt, seed and passes, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from rtgen.bench.configurations import BASELINE, CONFIGURATIONS
from rtgen.bench.random_model import has_weights, random_model
from rtgen.bench.result import Measurement
from rtgen.bench.seat import Case, Peak, Played, Seat, Stages
from rtgen.build.plan import with_decoder
from rtgen.config.load import load_gpu, load_model
from rtgen.errors import RtgenError, UsageError
from rtgen.runtime.profiles import serve_all

if TYPE_CHECKING:
    from rtgen.build.request import BuildRequest
    from rtgen.engine.manifest import Size
    from rtgen.progress import Progress

SEED: Final = 0
_ENVIRONMENT: Final = 3
"""Exit code of what this machine lacks."""


@dataclass
class Samples:
    """What one configuration did, repeat by repeat."""

    seat: Seat
    stages: list[Stages] = field(default_factory=list)
    played: list[Played] = field(default_factory=list)
    peak: Peak = field(default_factory=lambda: Peak(None, None))

    @property
    def name(self) -> str:
        return self.seat.case.name

    def fields(self) -> dict[str, Any]:
        """As JSON has it."""
        opened = self.seat.opened
        return {
            "name": self.name,
            "backend": opened.backend,
            "device": opened.device,
            "overlap": opened.overlap,
            "stages": [asdict(stages) for stages in self.stages],
            "played": [asdict(played) for played in self.played],
            "peak": asdict(self.peak) | {"gpu_memory_bytes": opened.gpu_memory_bytes},
        }


@dataclass(frozen=True)
class PipelineFigures:
    """Everything that was measured."""

    results: Sequence[Measurement]
    cases: Sequence[Mapping[str, Any]]
    skipped: Mapping[str, str]
    """Configurations that this machine cannot run, and why."""
    random_weights: bool


@dataclass(frozen=True)
class _Figure:
    """A row for each configuration."""

    title: str
    unit: str
    of: Callable[[Samples], float | None]
    more_is_better: bool = False


def _stage(name: str) -> Callable[[Samples], float | None]:
    return lambda samples: 1000 * median(getattr(stages, name) for stages in samples.stages)


def _run(name: str) -> Callable[[Samples], float | None]:
    def of(samples: Samples) -> float | None:
        known = [value for played in samples.played if (value := getattr(played, name)) is not None]
        return median(known) if known else None

    return of


def _gib(of: Callable[[Samples], int | None]) -> Callable[[Samples], float | None]:
    return lambda samples: None if (count := of(samples)) is None else count / (1 << 30)


def _energy(samples: Samples) -> float | None:
    known = [played.gpu_power_w / played.fps for played in samples.played if played.gpu_power_w is not None]
    return median(known) if known else None


FIGURES: Final = (
    _Figure("denoise pass", "ms", _stage("denoise_pass_s")),
    _Figure("clean pass", "ms", _stage("clean_pass_s")),
    _Figure("decode a chunk", "ms", _stage("decode_s")),
    _Figure("chunk, stage after stage", "ms", _stage("chunk_s")),
    _Figure("denoising alone", "FPS", _run("loop_fps"), more_is_better=True),
    _Figure("after the first chunk", "FPS", _run("steady_fps"), more_is_better=True),
    _Figure("end to end", "FPS", _run("fps"), more_is_better=True),
    _Figure("time to first frame", "s", _run("time_to_first_frame_s")),
    _Figure("peak memory of the process", "GiB", _gib(lambda samples: samples.peak.resident_bytes)),
    _Figure("peak GPU memory", "GiB", _gib(lambda samples: samples.seat.opened.gpu_memory_bytes)),
    _Figure("peak of torch's tensors on the GPU", "GiB", _gib(lambda samples: samples.peak.allocated_bytes)),
    _Figure("GPU power", "W", _run("gpu_power_w")),
    _Figure("GPU energy a frame", "J", _energy),
)


def measure(
    request: BuildRequest,
    recipes: Sequence[str],
    names: Sequence[str],
    size: Size,
    seconds: float,
    repeats: int,
    progress: Progress,
) -> PipelineFigures:
    """Medians of ``repeats`` turns: in each, every configuration times its stages, then plays a video of ``seconds``.

    ``names``: configurations beside the baseline, all if empty; those with recipes once for each of ``recipes`` (the
    GPU's own if empty). One that this machine cannot run is left out with the reason, unless nothing else is left.
    Raises UsageError for an unknown name, and what building and running raise.
    """
    chosen, config = chosen_names(names), with_decoder(load_model(request.model), request.decoder)
    frames = max(1, round(seconds * config.frames_per_second))
    is_random = request.weights is None and not has_weights(request)
    with ExitStack() as stack:
        if is_random:
            progress.note(f"there are no weights of {config.name}: random ones at full size take their place")
            weights, store = stack.enter_context(random_model(config))
            request = replace(request, weights=weights, store=store)
        cases, skipped = _cases(request, recipes, chosen, size, progress)
        folder, all_samples = Path(stack.enter_context(TemporaryDirectory())), list[Samples]()
        for case in cases:
            progress.update("open", None, case.name)
            all_samples.append(Samples(stack.enter_context(Seat(case, folder))))
        for repeat in range(repeats):
            for number, samples in enumerate(all_samples):
                progress.update("bench", (repeat + number / len(all_samples)) / repeats, samples.name)
                samples.stages.append(samples.seat.stages())
                samples.played.append(samples.seat.play(frames))
        for samples in all_samples:
            samples.peak = samples.seat.peak()
        progress.update("bench", 1.0)
    baseline, *others = all_samples
    results = [result for samples in others for result in _compared(samples, baseline)]
    return PipelineFigures(results, [samples.fields() for samples in all_samples], skipped, is_random)


def chosen_names(names: Sequence[str]) -> list[str]:
    """Those asked for, or all but the baseline. Raises UsageError for one that there is not."""
    known = [name for name in CONFIGURATIONS if name != BASELINE]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no configuration '{name}' to measure", hint=f"one of: {', '.join(known)}")
    return list(names) or known


def _cases(
    request: BuildRequest, recipes: Sequence[str], names: Sequence[str], size: Size, progress: Progress
) -> tuple[list[Case], dict[str, str]]:
    """The baseline first. Everything that has to be built is built here."""
    model = load_model(request.model)
    request = replace(request, sizes=() if serve_all(model.resolution.profiles, [size]) else (size,))
    wanted = [(BASELINE, BASELINE, request)]
    for name in names:
        chosen = list(recipes) or [load_gpu(request.gpu).default_recipe]
        if CONFIGURATIONS[name].has_recipes:
            wanted += [(f"{name} {recipe}", name, replace(request, recipe=recipe)) for recipe in chosen]
        else:
            wanted.append((name, name, request))
    cases, lacking = [], dict[str, RtgenError]()
    for title, name, its in wanted:
        try:
            path = CONFIGURATIONS[name].prepare(its, size, progress)
        except RtgenError as error:
            if error.exit_code != _ENVIRONMENT or name == BASELINE:
                raise
            lacking[title] = error
            continue
        cases.append(Case(title, name, its, path, size, model.example_prompts[0], SEED))
    if len(cases) < 2:
        raise next(iter(lacking.values()))
    return cases, {title: error.message for title, error in lacking.items()}


def _compared(samples: Samples, baseline: Samples) -> list[Measurement]:
    note = f"{baseline.seat.opened.backend}, {baseline.seat.opened.device}"
    found = []
    for figure in FIGURES:
        value, other = figure.of(samples), figure.of(baseline)
        if value is None:
            continue
        ratio = None if not other or not value else value / other if figure.more_is_better else other / value
        found.append(Measurement(f"{samples.name}: {figure.title}", value, figure.unit, other, ratio, note))
    return [*found, _agreement(samples, baseline)]


def _agreement(samples: Samples, baseline: Samples) -> Measurement:
    """How near the first chunk's frames are."""
    from rtgen.fidelity.metrics import psnr, squared_errors

    errors = squared_errors(samples.seat.opened.first_chunk, baseline.seat.opened.first_chunk)
    value = psnr(max(float(errors.mean()), 1e-9))  # JSON has no infinity
    return Measurement(f"{samples.name}: first chunk beside the baseline's", value, "dB", None, None, "PSNR")
