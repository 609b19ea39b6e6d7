"""Play a pipeline into a sink, as fast as it can or in real time, and say how fast it was."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from rtgen.engine.manifest import Size
from rtgen.runtime.gpu_monitor import GpuMonitor, GpuUse
from rtgen.runtime.pace import RealTime
from rtgen.runtime.pipeline import Pipeline
from rtgen.runtime.sink import Sink, open_sink
from rtgen.runtime.timing import ChunkClock
from rtgen.runtime.writers import Frames

OnProgress = Callable[[int, float, float | None], None]
"""Called after each chunk with the frames so far, the FPS so far and the time to the first frame in seconds."""


@dataclass(frozen=True)
class Change:
    """What is to be different from the first chunk on that begins after ``frames`` frames."""

    frames: int
    prompt: str | None = None
    size: Size | None = None


@dataclass(frozen=True)
class RunSummary:
    """What a run made and how long it took; seconds count from the prompt to the closed file."""

    output: str
    frames: int
    """Frames in the video; dropped ones are not."""
    seconds: float
    fps: float
    """From the prompt to the closed file: the first chunk's delay and the encoder's end are in it."""
    time_to_first_frame_s: float
    backend: str
    device: str
    size: Size
    """Of the video, and of its first frames."""
    warnings: tuple[str, ...]
    denoise_passes: float
    """Of a chunk, on average."""
    saved_passes: float
    """Share of the denoise passes that adaptive steps left out, 0 .. 1."""
    shed_passes: int
    """How many passes those are, of the whole run."""
    steady_fps: float | None
    """Frames a second after the first chunk; None for a video of one chunk."""
    loop_fps: float | None
    """Frames a second if denoising were all: passes of the network, without decoding and encoding."""
    chunk_jitter_p95: float | None
    """The 95th percentile of the time between chunks over its median; None for fewer than three chunks."""
    chunk_jitter_max: float | None
    """The longest time between chunks over the median."""
    overlap: bool
    """Whether denoising and decoding ran at the same time."""
    dropped_frames: int
    """Left out in real time, since their time had passed."""
    paused_s: float
    """How far the schedule of real time was moved, since the model did not hold the rate."""
    gpu_memory_bytes: int | None
    """The most that was in use on the GPU, by any program; this and the next two are None without an NVIDIA GPU."""
    gpu_power_w: float | None
    """On average."""
    gpu_utilisation: float | None
    """Share of the time in which a kernel ran, 0 .. 1."""


def play(
    pipeline: Pipeline,
    output: str,
    prompt: str,
    seed: int,
    frames: int,
    size: Size | None,
    on_progress: OnProgress,
    *,
    error_budget: float = 0.0,
    then: Sequence[Change] = (),
    pace: RealTime | None = None,
) -> RunSummary:
    """Stream ``frames`` frames into ``output`` (see ``rtgen.runtime.sink``), encoding behind the next chunk's back.

    ``error_budget`` is that of ``Pipeline.stream``. ``then`` are other prompts and sizes to go on with; frames of
    another size are scaled to the video's. ``pace``: play at its rate; it steers the error budget and drops frames as
    ``rtgen.runtime.pace`` says. Without it chunks are taken as fast as they come.
    Raises what the pipeline and the sink raise; frames finished by then stay in a playable file.
    """
    manifest, shape = pipeline.manifest, size or pipeline.manifest.model.default_size
    start, clock = time.perf_counter(), ChunkClock()
    adaptive = pace is not None
    stream = pipeline.stream(prompt, seed=seed, frames=frames, size=size, error_budget=error_budget, adaptive=adaptive)
    warnings = dict.fromkeys(pipeline.warnings)
    due, made = sorted(then, key=lambda change: change.frames), 0
    for change in due:
        _check(pipeline, change)
    with (
        closing(stream),
        GpuMonitor(manifest.target.compute_capability) as gpu,
        open_sink(output, frames_per_second=manifest.model.frames_per_second, size=shape) as sink,
    ):
        for chunk in stream:
            _write(sink, chunk, pace)
            if pace is not None:
                pipeline.error_budget = pace.budget
            made += len(chunk)
            elapsed = time.perf_counter() - start
            clock.tick(elapsed, len(chunk))
            on_progress(made, made / elapsed, clock.first_s)
            warnings |= dict.fromkeys(pipeline.warnings)
            while due and due[0].frames <= made:
                _apply(pipeline, due.pop(0))
    seconds = time.perf_counter() - start
    return _summary(pipeline, output, sink.frames, shape, seconds, clock, tuple(warnings), pace, gpu.use)


def _check(pipeline: Pipeline, change: Change) -> None:
    """Refuse here what would be refused in mid-stream."""
    if change.size is not None:
        pipeline.check_size(change.size)


def _apply(pipeline: Pipeline, change: Change) -> None:
    if change.prompt is not None:
        pipeline.prompt = change.prompt
    if change.size is not None:
        pipeline.size = change.size


def _write(sink: Sink, chunk: Frames, pace: RealTime | None) -> None:
    dropped = 0 if pace is None else pace.release(len(chunk))
    if dropped:
        sink.skip(dropped)
    sink.write(chunk[dropped:])


def _summary(
    pipeline: Pipeline,
    output: str,
    frames: int,
    size: Size,
    seconds: float,
    clock: ChunkClock,
    warnings: tuple[str, ...],
    pace: RealTime | None,
    gpu: GpuUse,
) -> RunSummary:
    passes = pipeline.passes
    return RunSummary(
        output=output,
        frames=frames,
        seconds=seconds,
        fps=frames / seconds,
        time_to_first_frame_s=clock.first_s or 0.0,
        backend=pipeline.backend_name,
        device=pipeline.device,
        size=size,
        warnings=warnings,
        denoise_passes=passes.average,
        saved_passes=passes.saved,
        shed_passes=passes.levels * passes.chunks - passes.passes,
        steady_fps=clock.steady_fps,
        loop_fps=pipeline.times.loop_fps,
        chunk_jitter_p95=clock.jitter_p95,
        chunk_jitter_max=clock.jitter_max,
        overlap=pipeline.overlaps,
        dropped_frames=0 if pace is None else pace.dropped_frames,
        paused_s=0.0 if pace is None else pace.paused_s,
        gpu_memory_bytes=gpu.gpu_memory_bytes,
        gpu_power_w=gpu.gpu_power_w,
        gpu_utilisation=gpu.gpu_utilisation,
    )
