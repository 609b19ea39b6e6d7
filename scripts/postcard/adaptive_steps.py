"""How well adaptive steps predict what they cost, and what they save, with a built package of the bundled model.

    python -m scripts.postcard.adaptive_steps --package engines/postcard/cpu/KEY

The first table takes several ways through the noise levels for each chunk, after the same past, and compares the
latents with those of all levels; "predicted" is what `rtgen.runtime.adaptive` says beforehand. The second plays streams
with error budgets: the error of each chunk against all levels after the same past, and the frames against those of the
stream with fixed steps and the same seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtgen import Pipeline
from rtgen.engine.package import Package, open_package
from rtgen.runtime.adaptive import CAUTION, AdaptiveSteps, PassCount, skip_error
from rtgen.runtime.backends import open_backend
from rtgen.runtime.denoise import Denoiser
from rtgen.runtime.text import PromptEncoder
from scripts.postcard.grammar import canonical_caption, held_out_scenes

Latents = NDArray[np.float32]
Way = tuple[int, ...]
"""The levels of a chunk's passes, counted from 0."""


class Along(AdaptiveSteps):
    """Takes the levels that it is told, and keeps the changes that it is shown."""

    def __init__(self, denoiser: Denoiser, way: Way) -> None:
        super().__init__(denoiser.model.sigmas, denoiser.model.sampler, 0.0)
        self.following = dict(pairwise((*way, len(denoiser.model.sigmas))))
        self.changes: list[float] = []

    def after(self, level: int, change: float | None) -> int:
        self.changes += [] if change is None else [change]
        return self.following[level]


@dataclass
class WayFigures:
    """What one way through the levels cost each chunk, and what was predicted (empty where nothing is)."""

    errors: list[float] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)


@dataclass
class BudgetFigures:
    """Streams under one error budget."""

    passes: PassCount
    errors: list[float] = field(default_factory=list)
    seconds: float = 0.0
    frames: list[NDArray[np.uint8]] = field(default_factory=list)


class Streams:
    """Denoisers of one package, each at the start of the stream of another prompt."""

    def __init__(self, package: Package, prompts: list[str]) -> None:
        self.model, self.prompts = package.manifest.model, prompts
        backend = open_backend(package)
        self._text, self._session = PromptEncoder(package, backend), backend.open("denoiser")
        rows, columns = (side // step for side, step in zip(self.model.default_size, self.model.size_step, strict=True))
        self._sizes = {"rows": rows, "columns": columns}

    def start(self, budget: float = 0.0) -> Iterator[Denoiser]:
        for seed, prompt in enumerate(self.prompts):
            denoiser = Denoiser(self._session, self.model, self._sizes, seed, budget)
            denoiser.set_context(self._text.context(self._text.tokens(prompt)))
            yield denoiser


def generated(denoiser: Denoiser, chunk: int) -> Latents:
    """The latents of the next chunk."""
    denoiser.generate(chunk, chunk * denoiser.model.chunk)
    latents: Latents = denoiser.session.read("denoised")
    return latents


def tried(denoiser: Denoiser, chunk: int, steps: AdaptiveSteps | None) -> Latents:
    """The latents of the next chunk under ``steps``; whatever is generated next takes its place."""
    kept = denoiser.steps, denoiser.passes
    denoiser.steps, denoiser.passes = steps, PassCount(len(denoiser.model.sigmas))
    latents = generated(denoiser, chunk)
    denoiser.steps, denoiser.passes = kept
    denoiser.written -= 1
    return latents


def root_mean_square(difference: Latents) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))


def ways(levels: int) -> list[Way]:
    """Ways with one gap before the last level or after the first, and for comparison those that stop early."""
    last = levels - 1
    gaps = [(*range(start + 1), last) for start in range(last - 1)]
    gaps += [(0, *range(following, levels)) for following in range(2, last)]
    return gaps + [tuple(range(stop)) for stop in range(1, levels)]


def compare_ways(streams: Streams, chunks: int) -> dict[Way, WayFigures]:
    """Every way for every chunk but the first of each stream; the past has fixed steps."""
    sigmas = streams.model.sigmas
    figures = {way: WayFigures() for way in ways(len(sigmas))}
    for denoiser in streams.start():
        record = 0.0
        for chunk in range(chunks):
            trials = {way: tried(denoiser, chunk, Along(denoiser, way)) for way in figures if chunk}
            denoiser.steps = full = Along(denoiser, tuple(range(len(sigmas))))
            latents = generated(denoiser, chunk)
            for way, trial in trials.items():
                figures[way].errors.append(root_mean_square(trial - latents))
                if way[-1] == len(sigmas) - 1:
                    figures[way].predicted.append(predicted(streams, way, full.changes, record))
            record = sum(full.changes) / (sigmas[0] - sigmas[-1])
    return figures


def predicted(streams: Streams, way: Way, changes: list[float], record: float) -> float:
    """What the rule says of the gap in ``way``, from the changes before it or from the chunk before."""
    sigmas = streams.model.sigmas
    start, following = next(pair for pair in pairwise(way) if pair[1] != pair[0] + 1)
    rate = changes[start - 1] / (sigmas[start - 1] - sigmas[start]) if start else CAUTION * record
    return rate * skip_error(sigmas, streams.model.sampler, start, following)


def play(package: Path, streams: Streams, chunks: int, budget: float) -> BudgetFigures:
    """All streams with an error budget."""
    figures = BudgetFigures(PassCount(len(streams.model.sigmas)))
    for denoiser in streams.start(budget):
        for chunk in range(chunks):
            fixed = tried(denoiser, chunk, None)
            figures.errors.append(root_mean_square(generated(denoiser, chunk) - fixed))
    frames = chunks * streams.model.chunk * streams.model.temporal_stride - streams.model.dropped_frames
    with Pipeline.open(package) as pipeline:
        for seed, prompt in enumerate(streams.prompts):
            start = time.perf_counter()
            clip = list(pipeline.stream(prompt, seed=seed, frames=frames, error_budget=budget))
            figures.seconds += time.perf_counter() - start
            figures.frames.append(np.concatenate(clip))
            figures.passes.chunks += pipeline.passes.chunks
            figures.passes.passes += pipeline.passes.passes
    return figures


def rank_correlation(first: list[float], second: list[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def peak_signal_to_noise(frames: list[NDArray[np.uint8]], reference: list[NDArray[np.uint8]]) -> float:
    """Of all frames together, in dB; infinite for equal ones."""
    squares = [np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(frames, reference, strict=True)]
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(255**2 / np.mean(squares)))


def way_lines(sigmas: tuple[float, ...], figures: dict[Way, WayFigures]) -> Iterator[str]:
    yield f"{'noise levels':<24}{'passes':>7}{'error':>8}{'predicted':>11}{'error/predicted, 5 50 95 %':>28}{'rank':>7}"
    for way, figure in figures.items():
        levels = ", ".join(f"{sigmas[level]:.3g}" for level in way)
        line = f"{levels:<24}{len(way):>7}{np.mean(figure.errors):>8.3f}"
        if figure.predicted:
            ratios = np.quantile(np.divide(figure.errors, figure.predicted), (0.05, 0.5, 0.95))
            line += f"{np.mean(figure.predicted):>11.3f}{'  '.join(f'{ratio:.2f}' for ratio in ratios):>28}"
            line += f"{rank_correlation(figure.errors, figure.predicted):>7.2f}"
        yield line


BUDGET_HEADER = "budget  passes   saved   error  95 %  over budget    PSNR     FPS"


def budget_line(budget: float, figure: BudgetFigures, fixed: BudgetFigures) -> str:
    errors = np.array(figure.errors)
    fps = sum(map(len, figure.frames)) / figure.seconds
    return (
        f"{budget:<8g}{figure.passes.average:>6.2f}{figure.passes.saved:>8.1%}{errors.mean():>8.3f}"
        f"{np.quantile(errors, 0.95):>6.3f}{np.mean(errors > budget):>13.1%}"
        f"{peak_signal_to_noise(figure.frames, fixed.frames):>8.1f}{fps:>8.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="folder that `rtgen build` made")
    parser.add_argument("--prompts", type=int, default=12, help="held-out prompts")
    parser.add_argument("--chunks", type=int, default=5, help="of each stream")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    arguments = parser.parse_args()
    if arguments.chunks < 2 or arguments.prompts < 1:
        parser.error("--chunks must be at least 2 and --prompts at least 1")
    prompts = [canonical_caption(scene) for scene in held_out_scenes(arguments.prompts, seed=7)]
    streams = Streams(open_package(arguments.package), prompts)
    print(*way_lines(streams.model.sigmas, compare_ways(streams, arguments.chunks)), sep="\n", end="\n\n")
    fixed = play(arguments.package, streams, arguments.chunks, 0.0)
    print(BUDGET_HEADER, budget_line(0.0, fixed, fixed), sep="\n", flush=True)
    for budget in arguments.budgets:
        print(budget_line(budget, play(arguments.package, streams, arguments.chunks, budget), fixed), flush=True)


if __name__ == "__main__":
    main()
