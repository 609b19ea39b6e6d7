"""Play a pipeline into a sink, and say how fast it was."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from rtgen.engine.manifest import Size
from rtgen.runtime.pipeline import Pipeline
from rtgen.runtime.sink import open_sink

OnProgress = Callable[[int, float, float | None], None]
"""Called after each chunk with the frames so far, the FPS so far and the time to the first frame in seconds."""


@dataclass(frozen=True)
class RunSummary:
    """What a run made and how long it took; seconds count from the prompt to the closed file."""

    output: str
    frames: int
    seconds: float
    fps: float
    time_to_first_frame_s: float
    backend: str
    device: str
    size: Size
    warnings: tuple[str, ...]


def play(
    pipeline: Pipeline,
    output: str,
    prompt: str,
    seed: int,
    frames: int,
    size: Size | None,
    on_progress: OnProgress,
) -> RunSummary:
    """Stream ``frames`` frames into ``output`` (see ``rtgen.runtime.sink``), encoding behind the next chunk's back.

    Raises what the pipeline and the sink raise; frames finished by then stay in a playable file.
    """
    model = pipeline.manifest.model
    start = time.perf_counter()
    stream = pipeline.stream(prompt, seed=seed, frames=frames, size=size)
    warnings = pipeline.warnings
    made, first = 0, 0.0
    shape = size or model.default_size
    with open_sink(output, frames_per_second=model.frames_per_second, size=shape) as sink:
        for chunk in stream:
            elapsed = time.perf_counter() - start
            first = first or elapsed
            made += len(chunk)
            sink.write(chunk)
            on_progress(made, made / elapsed, first)
    seconds = time.perf_counter() - start
    return RunSummary(
        output, made, seconds, made / seconds, first, pipeline.backend_name, pipeline.device, shape, warnings
    )
