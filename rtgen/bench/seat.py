"""One configuration in a process of its own, which plays when it is told to.

So its memory is its own, a runtime without torch has no torch beside it, and the others wait while it computes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final

from rtgen import errors
from rtgen.bench.configurations import CONFIGURATIONS
from rtgen.bench.memory import peak_allocated_bytes, peak_resident_bytes
from rtgen.bench.passes import WatchedBackend
from rtgen.build.request import BuildRequest
from rtgen.errors import RtgenError
from rtgen.runtime.gpu_monitor import INTERVAL_SECONDS, GpuMonitor
from rtgen.runtime.pipeline import Pipeline
from rtgen.runtime.player import play

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from rtgen.engine.manifest import Size
    from rtgen.runtime.decode import Frames

_STEADY_CHUNKS: Final = 2
"""Chunks that stages are timed over, once the window is full."""
_PATIENCE_SECONDS: Final = 2.0
"""For a process that waits for its next message to notice that there is none."""


@dataclass(frozen=True)
class Case:
    """What a seat plays."""

    name: str
    configuration: str
    request: BuildRequest
    path: Path
    """What ``Configuration.prepare`` made."""
    size: Size
    prompt: str
    seed: int


@dataclass(frozen=True)
class Stages:
    """Seconds of the parts of a chunk with a full window, medians; each is waited for, and nothing overlaps."""

    denoise_pass_s: float
    clean_pass_s: float
    decode_s: float
    """Of the whole chunk, until its frames are on the host."""
    chunk_s: float


@dataclass(frozen=True)
class Played:
    """A video, as ``rtgen run`` plays it."""

    fps: float
    """End to end: from the prompt to the closed file."""
    steady_fps: float | None
    loop_fps: float | None
    time_to_first_frame_s: float
    gpu_power_w: float | None


@dataclass(frozen=True)
class Opened:
    """A configuration that is ready."""

    backend: str
    device: str
    overlap: bool
    first_chunk: Frames
    gpu_memory_bytes: int | None
    """What the GPU had in use more than before, at most: weights, ring, intermediate results and context."""


@dataclass(frozen=True)
class Peak:
    """The most memory so far."""

    resident_bytes: int | None
    allocated_bytes: int | None
    """Of the GPU's, by torch's tensors."""


class Seat:
    """The parent's end. As a context manager the process ends with the block."""

    def __init__(self, case: Case, folder: Path) -> None:
        """``folder``: for videos that nobody will see. Raises what opening the configuration raises."""
        self.case = case
        spawn = get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, case, folder), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.opened: Opened = self._answer()
        except BaseException:
            self.close()
            raise

    def stages(self) -> Stages:
        """Time the parts of chunks."""
        found: Stages = self._ask("stages")
        return found

    def play(self, frames: int) -> Played:
        """Play a video of so many frames into a file."""
        found: Played = self._ask("play", frames)
        return found

    def peak(self) -> Peak:
        """The most memory that the process had."""
        found: Peak = self._ask("peak")
        return found

    def close(self) -> None:
        """End the process. Idempotent."""
        self._connection.close()
        self._process.join(_PATIENCE_SECONDS if self._process.exitcode is None else 0)
        self._process.terminate()
        self._process.join()

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, *message: object) -> Any:
        with suppress(OSError):  # the answer says that nobody is there
            self._connection.send(message)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise RtgenError(
                f"{self.case.name}: the process ended with {self._process.exitcode}", hint="rtgen doctor"
            ) from None
        if isinstance(answer, _Failure):
            raise answer.error(self.case.name)
        return answer


@dataclass(frozen=True)
class _Failure:
    """An error of rtgen on its way to the parent."""

    kind: str
    message: str
    hint: str | None

    def error(self, where: str) -> RtgenError:
        kind: type[RtgenError] = getattr(errors, self.kind, RtgenError)
        error = kind.__new__(kind)  # constructors differ
        RtgenError.__init__(error, f"{where}: {self.message}", hint=self.hint)
        return error


def _serve(connection: Connection, case: Case, folder: Path) -> None:
    """The child's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    with suppress(EOFError, OSError):  # nobody listens any more
        try:
            performer = _Performer(case, folder)
            with closing(performer.pipeline):
                connection.send(performer.opened)
                answers: dict[str, Callable[..., object]] = {
                    "stages": performer.stages,
                    "play": performer.play,
                    "peak": lambda: Peak(peak_resident_bytes(), peak_allocated_bytes()),
                }
                while True:
                    name, *arguments = connection.recv()
                    connection.send(answers[name](*arguments))
        except RtgenError as error:
            connection.send(_Failure(type(error).__name__, error.message, error.hint))


class _Performer:
    """A pipeline, and what is measured of it."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        package, backend = CONFIGURATIONS[case.configuration].open(case.request, case.path)
        capability = package.manifest.target.compute_capability
        with GpuMonitor(capability) as before:
            sleep(INTERVAL_SECONDS if capability else 0)
        with GpuMonitor(capability) as gpu:
            watched = WatchedBackend(backend)
            self.pipeline, self.times = Pipeline(package, watched), watched.times
            first = self._chunks(2)[0]
            sleep(INTERVAL_SECONDS if capability else 0)
        used, more = before.use.gpu_memory_bytes, gpu.use.gpu_memory_bytes
        self.opened = Opened(
            backend.name,
            backend.device,
            self.pipeline.overlaps,
            first,
            None if used is None or more is None else more - used,
        )

    def stages(self) -> Stages:
        pipeline, model = self.pipeline, self.pipeline.manifest.model
        filled = model.window // model.chunk
        chunks, decodes, before = [], [], 0.0
        overlaps, pipeline.overlaps, self.times.enabled = pipeline.overlaps, False, True
        with closing(self._stream(None)) as stream:
            for number in range(filled + _STEADY_CHUNKS):
                if number == filled:
                    self.times.forget()
                start = perf_counter()
                next(stream)
                chunks.append(perf_counter() - start)
                decodes.append(pipeline.times.decode_s - before)
                before = pipeline.times.decode_s
        pipeline.overlaps, self.times.enabled = overlaps, False
        return Stages(
            median(self.times.denoise_s),
            median(self.times.clean_s),
            median(decodes[filled:]),
            median(chunks[filled:]),
        )

    def play(self, frames: int) -> Played:
        case = self.case
        output = str(self.folder / "video.mp4")
        done = play(self.pipeline, output, case.prompt, case.seed, frames, case.size, lambda *_: None)
        return Played(done.fps, done.steady_fps, done.loop_fps, done.time_to_first_frame_s, done.gpu_power_w)

    def _chunks(self, count: int) -> list[Frames]:
        with closing(self._stream(None)) as stream:
            return [next(stream) for _ in range(count)]

    def _stream(self, frames: int | None) -> Any:
        return self.pipeline.stream(self.case.prompt, seed=self.case.seed, frames=frames, size=self.case.size)
