"""Play a pipeline into a sink, and say how fast it was."""

import time
from collections.abc import Callable, Sequence
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
    denoise_passes: float
    """Of a chunk, on average."""
    saved_passes: float
    """Share of the denoise passes that adaptive steps left out, 0 .. 1."""


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
    then: Sequence[tuple[int, str]] = (),
) -> RunSummary:
    """Stream ``frames`` frames into ``output`` (see ``rtgen.runtime.sink``), encoding behind the next chunk's back.

    ``error_budget`` is that of ``Pipeline.stream``. ``then`` are prompts to switch to, each with the number of frames
    after which it is due; it holds from the next chunk on.
    Raises what the pipeline and the sink raise; frames finished by then stay in a playable file.
    """
    model = pipeline.manifest.model
    start = time.perf_counter()
    stream = pipeline.stream(prompt, seed=seed, frames=frames, size=size, error_budget=error_budget)
    warnings = dict.fromkeys(pipeline.warnings)
    due = sorted(then, key=lambda change: change[0])
    made, first = 0, 0.0
    shape = size or model.default_size
    with open_sink(output, frames_per_second=model.frames_per_second, size=shape) as sink:
        for chunk in stream:
            elapsed = time.perf_counter() - start
            first = first or elapsed
            made += len(chunk)
            sink.write(chunk)
            on_progress(made, made / elapsed, first)
            warnings |= dict.fromkeys(pipeline.warnings)
            while due and due[0][0] <= made:
                pipeline.prompt = due.pop(0)[1]
    seconds = time.perf_counter() - start
    return RunSummary(
        output, made, seconds, made / seconds, first, pipeline.backend_name, pipeline.device, shape, tuple(warnings),
        pipeline.passes.average, pipeline.passes.saved,
    )  # fmt: skip
