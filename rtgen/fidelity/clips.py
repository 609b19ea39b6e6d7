"""Which clips are made, and how: the same prompts and seeds for FP16 and for every recipe."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from rtgen.errors import UsageError
from rtgen.fidelity.findings import Clip
from rtgen.fidelity.metrics import SSIM_WINDOW
from rtgen.fidelity.simulated_backend import SimulatedBackend
from rtgen.runtime.backends.onnxruntime import OnnxRuntimeBackend
from rtgen.runtime.cpu import thread_count
from rtgen.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig, Size
    from rtgen.engine.package import Package
    from rtgen.fidelity.attributes import EvaluationPrompt
    from rtgen.fidelity.metrics import Frames
    from rtgen.runtime.session import Session

Advance = Callable[[float], None]
"""Told the fraction of the clips that is done."""


@dataclass(frozen=True)
class ClipPlan:
    """``clips`` prompts with their seeds; the first of them are made longer too.

    ``lengths`` are seconds, ascending. Of a longer length there are fewer clips, so that each length takes about as
    long, and their first seconds serve the shorter lengths.
    """

    clips: tuple[Clip, ...]
    lengths: tuple[float, ...]
    frames_per_second: int
    size: Size

    def count(self, seconds: float) -> int:
        """Clips of a length."""
        return max(1, math.floor(len(self.clips) * self.lengths[0] / seconds))

    def frames(self, seconds: float) -> int:
        return round(seconds * self.frames_per_second)

    def frames_of(self, number: int) -> int:
        """Frames that clip ``number`` is made of: those of the greatest length that it serves."""
        return self.frames(max(seconds for seconds in self.lengths if number < self.count(seconds)))

    @property
    def total_frames(self) -> int:
        return sum(self.frames_of(number) for number in range(len(self.clips)))


def plan_clips(
    model: ModelConfig, prompts: Sequence[EvaluationPrompt], count: int, lengths: Sequence[float], size: Size
) -> ClipPlan:
    """Clips of ``prompts`` in turn, seeded by their number. Raises UsageError for lengths or counts that make none."""
    if count < 1:
        raise UsageError(f"a report needs at least one clip, not {count}", hint="--clips 8")
    if not lengths or min(lengths) <= 0 or round(min(lengths) * model.frames_per_second) < 1:
        raise UsageError("the length of clips must be positive", hint="--seconds 5 --seconds 30")
    if min(size) < SSIM_WINDOW:
        raise UsageError(f"frames of {size[0]}x{size[1]} are too small to be compared")
    chosen = [prompts[number % len(prompts)] for number in range(count)]
    clips = tuple(Clip(prompt=item.prompt, seed=seed, asked=item.values) for seed, item in enumerate(chosen))
    return ClipPlan(clips, tuple(sorted(set(lengths))), model.frames_per_second, size)


@dataclass
class ClipFolder:
    """Clips on the disk while a report is made: memory need not hold them."""

    _folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="rtgen-report-", ignore_cleanup_errors=True)
    )

    def put(self, name: str, frames: Frames) -> None:
        np.save(self._path(name), frames, allow_pickle=False)

    def get(self, name: str) -> Frames:
        """uint8 [F, H, W, 3], read as it is used."""
        frames: Frames = np.load(self._path(name), mmap_mode="r", allow_pickle=False)
        return frames

    def drop(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def close(self) -> None:
        self._folder.cleanup()

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / f"{name}.npy"


def make_clips(
    package: Package,
    denoiser: Callable[[], Session],
    plan: ClipPlan,
    take: Callable[[int, Frames], None],
    advance: Advance,
) -> None:
    """Make every clip of ``plan``; ``take`` gets its number and its frames uint8 [F, H, W, 3], in order.

    ``package`` is one for the processor, ``denoiser`` opens what computes in the place of its own. Clips are made side
    by side, on one thread each: the models are small, and threads that share one would mostly wait for each other.
    """
    crew = _Crew(package, denoiser, plan, advance)
    with _single_threaded(), ThreadPoolExecutor(min(thread_count(), len(plan.clips))) as pool:
        try:
            for number, frames in enumerate(pool.map(crew.make, range(len(plan.clips)))):
                take(number, frames)
        finally:
            crew.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            crew.close()


class _Crew:
    """One pipeline for each thread that makes clips."""

    def __init__(self, package: Package, denoiser: Callable[[], Session], plan: ClipPlan, advance: Advance) -> None:
        self.stopped = threading.Event()
        self._package, self._denoiser, self._plan, self._advance = package, denoiser, plan, advance
        self._own = threading.local()
        self._lock, self._pipelines, self._done = threading.Lock(), list[Pipeline](), 0

    def make(self, number: int) -> Frames:
        """Clip ``number``, or as much of it as there is when :attr:`stopped` is set."""
        clip, chunks = self._plan.clips[number], []
        count = self._plan.frames_of(number)
        for frames in self._pipeline().stream(clip.prompt, seed=clip.seed, frames=count, size=self._plan.size):
            chunks.append(frames)
            with self._lock:
                self._done += len(frames)
                self._advance(self._done / self._plan.total_frames)
            if self.stopped.is_set():
                break
        return np.concatenate(chunks)

    def close(self) -> None:
        for pipeline in self._pipelines:
            pipeline.close()

    def _pipeline(self) -> Pipeline:
        if not hasattr(self._own, "pipeline"):
            backend = SimulatedBackend(OnnxRuntimeBackend(self._package, threads=1), self._denoiser())
            with self._lock:
                self._pipelines.append(Pipeline(self._package, backend))
            self._own.pipeline = self._pipelines[-1]
        pipeline: Pipeline = self._own.pipeline
        return pipeline


@contextmanager
def _single_threaded() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
