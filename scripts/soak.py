"""Play a package for a long time, and see whether memory and the time per chunk stay as they are.

    python -m scripts.soak engines/postcard/cpu/KEY --minutes 60

Frames are thrown away, or encoded with ``--output FILE``. Every half minute a line tells frames, memory and the time
per chunk. At the end one JSON object goes to stdout: memory after the first minute (or the first tenth of a shorter
run) and at the end, and the drift of the time per chunk, which is the median of the last quarter over that of the
first. The exit code is 1 if memory grew by more than ``--memory-limit`` or the time per chunk by more than
``--drift-limit``. With ``--restarts N`` it also starts and cancels N streams, and compares memory and threads before
and after. It needs psutil.
"""

import argparse
import gc
import json
import statistics
import sys
import threading
import time
from array import array
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

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
    growth_bytes: int
    threads_before: int
    threads_after: int


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    import psutil

    gc.collect()
    return int(psutil.Process().memory_info().rss)


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
    """Start ``streams`` streams, and cancel each after its first chunk."""

    def cancel(count: int) -> None:
        for seed in range(count):
            stream = pipeline.stream(prompt, seed=seed)
            next(stream)
            stream.close()

    cancel(max(1, streams // 5))  # what libraries keep, they have by now
    threads, memory = threading.active_count(), resident_bytes()
    cancel(streams)
    return Restarts(streams, resident_bytes() - memory, threads, threading.active_count())


def tell(seconds: float, frames: int, chunk_s: float) -> None:
    """A line for people."""
    memory = resident_bytes() / 2**20
    line = f"{seconds / 60:6.1f} min {frames:8} frames {memory:8.0f} MiB {chunk_s * 1000:7.0f} ms a chunk"
    print(line, file=sys.stderr, flush=True)


def _sink(pipeline: Pipeline, output: str | None) -> AbstractContextManager[Sink | None]:
    model = pipeline.manifest.model
    if output is None:
        return nullcontext()
    return open_sink(output, frames_per_second=model.frames_per_second, size=model.default_size)


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
        with _sink(pipeline, arguments.output) as sink:
            long = endure(pipeline, prompt, seconds, min(60.0, seconds / 10), sink=sink, report=True)
        short = restart(pipeline, prompt, arguments.restarts) if arguments.restarts else None
        machine = {"backend": pipeline.backend_name, "device": pipeline.device, "overlap": pipeline.overlaps}
    passed = long.growth_bytes <= limit and long.chunk_drift <= arguments.drift_limit
    if short is not None:
        passed = passed and short.growth_bytes <= limit and short.threads_after <= short.threads_before
    restarts = None if short is None else asdict(short)
    print(json.dumps({**machine, "passed": passed, "stream": asdict(long), "restarts": restarts}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
