"""Play a package for a long time, and see whether memory and the time per chunk stay as they are.

    python -m scripts.soak engines/postcard/cpu/KEY --minutes 60

Frames are thrown away, or encoded with ``--output FILE``. Every half minute a line tells frames, memory and the time
per chunk. At the end one JSON object goes to stdout: memory after the first minute (or the first tenth of a shorter
run) and at the end, and the drift of the time per chunk, which is the median of the last quarter over that of the
first. The exit code is 1 if memory grew by more than ``--memory-limit`` or the time per chunk by more than
``--drift-limit``. With ``--restarts N`` it also starts N streams, cancels each with its half-written video, and
compares memory, threads and open files (on Windows, handles) before and after; more threads or files fail it too.
``--minutes 0`` does only that. It needs psutil.
"""

import argparse
import gc
import json
import statistics
import sys
import threading
import time
from array import array
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rtgen.runtime.pipeline import Pipeline
from rtgen.runtime.sink import Sink, open_sink

REPORT_SECONDS = 30.0


@dataclass(frozen=True)
class Endurance:
    """What a long stream used."""

    chunks: int
    frames: int
    seconds: float
    fps: float
    memory_start_bytes: int
    """Resident memory of the process once everything has run for a while."""
    memory_end_bytes: int
    chunk_median_s: float
    chunk_p95_s: float
    chunk_drift: float
    """Median time per chunk of the last quarter over that of the first; 1 is none."""

    @property
    def growth_bytes(self) -> int:
        return self.memory_end_bytes - self.memory_start_bytes


@dataclass(frozen=True)
class Restarts:
    """What starting and cancelling streams left behind."""

    streams: int
    seconds: float
    growth_bytes: int
    threads_before: int
    threads_after: int
    files_before: int
    files_after: int

    @property
    def leaks(self) -> bool:
        """Whether threads or open files became more."""
        return self.threads_after > self.threads_before or self.files_after > self.files_before


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    import psutil

    gc.collect()
    return int(psutil.Process().memory_info().rss)


def open_files() -> int:
    """File descriptors of this process, or handles on Windows."""
    import psutil

    process = psutil.Process()
    return int(process.num_handles() if hasattr(process, "num_handles") else process.num_fds())


def endure(
    pipeline: Pipeline, prompt: str, seconds: float, warm_s: float, *, sink: Sink | None = None, report: bool = False
) -> Endurance:
    """Play an endless stream for ``seconds``, into ``sink`` if there is one, and look at memory from ``warm_s`` on."""
    times, frames, memory = array("d"), 0, 0
    stream = pipeline.stream(prompt)
    start = before = time.perf_counter()
    told = start
    try:
        for picture in stream:
            if sink is not None:
                sink.write(picture)
            now = time.perf_counter()
            times.append(now - before)
            frames, before = frames + len(picture), now
            if not memory and now - start >= warm_s:
                memory = resident_bytes()
            if report and now - told >= REPORT_SECONDS:
                told = now
                tell(now - start, frames, times[-1])
            if now - start >= seconds:
                break
    finally:
        stream.close()
    return _endurance(times, frames, time.perf_counter() - start, memory or resident_bytes())


def _endurance(times: "array[float]", frames: int, seconds: float, memory: int) -> Endurance:
    steady = times[1:] or times  # the first chunk waits for the caches of everything
    quarter = max(1, len(steady) // 4)
    return Endurance(
        chunks=len(times),
        frames=frames,
        seconds=seconds,
        fps=frames / seconds,
        memory_start_bytes=memory,
        memory_end_bytes=resident_bytes(),
        chunk_median_s=statistics.median(steady),
        chunk_p95_s=sorted(steady)[-(-95 * len(steady) // 100) - 1],
        chunk_drift=statistics.median(steady[-quarter:]) / statistics.median(steady[:quarter]),
    )


def restart(pipeline: Pipeline, prompt: str, streams: int) -> Restarts:
    """Start ``streams`` streams, write the first chunk of each to a video, and cancel both. Every fourth is cancelled
    before its first chunk."""
    with TemporaryDirectory() as folder:
        output = str(Path(folder) / "cancelled.mp4")
        _cancel(pipeline, prompt, max(1, streams // 5), output)  # what libraries keep, they have by now
        threads, files, memory = threading.active_count(), open_files(), resident_bytes()
        start = time.perf_counter()
        _cancel(pipeline, prompt, streams, output)
        seconds = time.perf_counter() - start
        growth = resident_bytes() - memory
        return Restarts(streams, seconds, growth, threads, threading.active_count(), files, open_files())


def _cancel(pipeline: Pipeline, prompt: str, streams: int, output: str) -> None:
    for number in range(streams):
        with ExitStack() as both:
            stream = both.enter_context(closing(pipeline.stream(prompt, seed=number)))
            sink = both.enter_context(open_video(pipeline, output))
            if number % 4 != 3:
                sink.write(next(stream))
            sink.abort()


def tell(seconds: float, frames: int, chunk_s: float) -> None:
    """A line for people."""
    memory = resident_bytes() / 2**20
    line = f"{seconds / 60:6.1f} min {frames:8} frames {memory:8.0f} MiB {chunk_s * 1000:7.0f} ms a chunk"
    print(line, file=sys.stderr, flush=True)


def open_video(pipeline: Pipeline, output: str) -> Sink:
    """A sink for frames of the model's default size."""
    model = pipeline.manifest.model
    return open_sink(output, frames_per_second=model.frames_per_second, size=model.default_size)


def _long(pipeline: Pipeline, prompt: str, seconds: float, output: str | None) -> Endurance:
    with nullcontext() if output is None else open_video(pipeline, output) as sink:
        return endure(pipeline, prompt, seconds, min(60.0, seconds / 10), sink=sink, report=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--prompt")
    parser.add_argument("--output", metavar="FILE")
    parser.add_argument("--restarts", type=int, default=0, metavar="N")
    parser.add_argument("--memory-limit", type=float, default=32.0, metavar="MIB")
    parser.add_argument("--drift-limit", type=float, default=1.25, metavar="FACTOR")
    arguments = parser.parse_args()
    seconds, limit = 60 * arguments.minutes, arguments.memory_limit * 2**20
    with Pipeline.open(arguments.package) as pipeline:
        prompt = arguments.prompt or pipeline.manifest.model.example_prompts[0]
        long = None if seconds <= 0 else _long(pipeline, prompt, seconds, arguments.output)
        short = restart(pipeline, prompt, arguments.restarts) if arguments.restarts else None
        machine = {"backend": pipeline.backend_name, "device": pipeline.device, "overlap": pipeline.overlaps}
    passed = long is None or (long.growth_bytes <= limit and long.chunk_drift <= arguments.drift_limit)
    if short is not None:
        passed = passed and short.growth_bytes <= limit and not short.leaks
    found = {"stream": long and asdict(long), "restarts": short and asdict(short)}
    print(json.dumps({**machine, "passed": passed, **found}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
