"""From a prompt to frames: text encoder once, then denoise and decode chunk by chunk. Knows no backend."""

import math
import time
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from rtgen.engine.manifest import Manifest, ModelEntry, Size
from rtgen.engine.package import Package, open_package
from rtgen.errors import SizeError, UsageError
from rtgen.runtime.adaptive import AdaptiveSteps, PassCount, checked_budget
from rtgen.runtime.backends import open_backend
from rtgen.runtime.chunk_memory import ChunkMemory
from rtgen.runtime.chunks import ChunkMaker, ChunksAhead, ChunkSource, MadeChunk
from rtgen.runtime.decode import Decoder, Frames
from rtgen.runtime.denoise import Denoiser, StoppedError
from rtgen.runtime.noise import SEED_LIMIT
from rtgen.runtime.profiles import choose_profile
from rtgen.runtime.session import Array, Backend, Session, can_overlap
from rtgen.runtime.text import PromptEncoder
from rtgen.runtime.timing import StageTimes


class Pipeline:
    """An open engine package. Use as a context manager, or call :meth:`close`.

    One stream at a time: starting another ends the one before. Where the backend overlaps, a stream has a thread that
    denoises the next chunk while the caller's thread decodes; the frames are the same bits either way.
    """

    def __init__(
        self, package: Package, backend: Backend, *, remember_prompts: bool = True, overlap: bool | None = None
    ) -> None:
        """``remember_prompts``: whether encoded prompts may be kept on the disk (see ``rtgen.runtime.embeddings``).

        ``overlap``: whether to denoise ahead; by default the backend says whether it pays. Raises UsageError where it
        cannot.
        """
        self.package, self.backend = package, backend
        self.overlaps = _overlaps(backend, overlap)
        """Whether denoising and decoding run at the same time."""
        self.times = StageTimes()
        """Time that the stages of the newest stream took so far."""
        self.warnings: tuple[str, ...] = ()
        """What was lost of the last prompt, such as words that the model does not know."""
        self.passes = PassCount(len(package.manifest.model.sigmas))
        """Denoise passes of the newest stream so far."""
        self._prompt = ""
        self._pending: str | None = None
        self._size = package.manifest.model.default_size
        self._pending_size: Size | None = None
        self._streams = 0  # started so far; only the newest goes on
        self._text = PromptEncoder(package, backend, remember=remember_prompts)
        self._source: ChunkSource | None = None  # of the newest stream
        self._steps: AdaptiveSteps | None = None
        self._denoiser: Session = backend.open("denoiser")
        self._decoder = Decoder(backend.open("decoder"), package.manifest.model)

    @classmethod
    def open(cls, package: Path | str, backend: str = "auto", *, overlap: bool | None = None) -> Self:
        """Verify and load a package folder. ``overlap`` as above.

        Raises PackageInvalidError, PackageMismatchError, NoGpuError, MemoryPlanError or UsageError.
        """
        opened = open_package(Path(package))
        return cls(opened, open_backend(opened, backend), overlap=overlap)

    @property
    def manifest(self) -> Manifest:
        return self.package.manifest

    @property
    def backend_name(self) -> str:
        return self.backend.name

    @property
    def device(self) -> str:
        """For people: what the pipeline runs on."""
        return self.backend.device

    @property
    def prompt(self) -> str:
        """The prompt of the running stream. Assigning another switches at the next chunk."""
        return self._prompt

    @prompt.setter
    def prompt(self, text: str) -> None:
        self._text.tokens(text)  # refuse a bad one here, not in mid-stream
        self._pending = text

    @property
    def size(self) -> Size:
        """Height and width of the running stream's frames. Assigning another changes them at the next chunk.

        The video goes on: what the model remembers of it is resized, and read again. Raises SizeError for a size that
        the package does not serve, at once.
        """
        return self._size

    @size.setter
    def size(self, size: Size) -> None:
        self.check_size(size)
        self._pending_size = size

    def check_size(self, size: Size) -> None:
        """Raise SizeError unless the package serves frames of ``size`` (height, width)."""
        self._sizes(size)

    def stream(
        self,
        prompt: str,
        *,
        seed: int = 0,
        frames: int | None = None,
        size: Size | None = None,
        error_budget: float = 0.0,
        adaptive: bool = False,
    ) -> Generator[Frames, None, None]:
        """Chunks of frames, uint8 RGB [F, H, W, 3], until ``frames`` are made; without ``frames`` it never ends.

        The same package, backend, prompt, seed, size and budget give the same bits. ``size`` is (height, width).
        ``error_budget`` is what leaving out denoise passes may change in a chunk: root mean square, in latent units
        (see ``rtgen.runtime.adaptive``); with 0 every pass runs. ``adaptive``: whether
        :attr:`error_budget` may be raised from 0 while the stream runs.
        Close the iterator to end the stream early; nothing is left running.
        Raises PromptError, SizeError or UsageError at once, before the first chunk is asked for.
        """
        if not 0 <= seed < SEED_LIMIT:
            raise UsageError(f"the seed must be in 0 .. 2**63 - 1, not {seed}")
        if frames is not None and frames < 1:
            raise UsageError(f"frames must be at least 1, not {frames}")
        size = size or self.manifest.model.default_size
        sizes = self._sizes(size)
        checked_budget(error_budget)
        context = self._encode(prompt)
        self._size, self._pending_size = size, None
        return self._chunks(context, frames, seed, sizes, error_budget, adaptive)

    @property
    def error_budget(self) -> float:
        """Of the newest stream. Assigning another holds from the next chunk on that is begun.

        Raises UsageError for an impossible one, and in a stream whose steps are fixed.
        """
        return 0.0 if self._steps is None else self._steps.budget

    @error_budget.setter
    def error_budget(self, budget: float) -> None:
        if self._steps is None:
            raise UsageError("the steps of this stream are fixed", hint="start it with adaptive=True")
        self._steps.budget = checked_budget(budget)

    def close(self) -> None:
        """End the stream, and release the sessions and their memory. Idempotent."""
        self._end_stream()
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sizes(self, size: Size) -> dict[str, int]:
        """The symbolic dimensions of a frame size that a profile serves."""
        model = self.manifest.model
        step = model.size_step
        if any(side % unit or side <= 0 for side, unit in zip(size, step, strict=True)):
            raise SizeError(
                f"frames of {size[0]}x{size[1]} cannot be made: sides are multiples of {step[0]} and {step[1]} pixels",
                hint=f"the default is {model.default_size[0]}x{model.default_size[1]}",
            )
        sizes = {"rows": size[0] // step[0], "columns": size[1] // step[1]}
        choose_profile(self.manifest.profiles, sizes, step)
        return sizes

    def _encode(self, prompt: str) -> Array:
        """The prompt's context vectors, [1, tokens, dim] float32."""
        tokens = self._text.tokens(prompt)
        context = self._text.context(tokens)
        self._prompt, self._pending, self.warnings = prompt, None, tokens.warnings
        return context

    def _chunks(
        self, context: Array, frames: int | None, seed: int, sizes: dict[str, int], budget: float, adaptive: bool
    ) -> Generator[Frames, None, None]:
        self._end_stream()
        mine, made = self._streams, 0
        denoiser = Denoiser(self._denoiser, self.manifest.model, sizes, seed, budget, adaptive=adaptive)
        with closing(self._start(context, frames, denoiser, sizes)) as source:
            while self._streams == mine and (frames is None or made < frames):
                pending = self._pending
                if pending is not None:
                    source.switch(partial(self._encode, pending))
                self._resize(source)
                try:
                    latents = source.take()
                except StoppedError:  # another thread ended the stream
                    return
                picture = self._decode(latents)
                if frames is not None:
                    picture = picture[: frames - made]
                made += len(picture)
                yield picture

    def _start(self, context: Array, frames: int | None, denoiser: Denoiser, sizes: dict[str, int]) -> ChunkSource:
        """Both halves of a stream, at its beginning."""
        model = self.manifest.model
        self.passes, self.times, self._steps = PassCount(len(model.sigmas)), StageTimes(), denoiser.steps
        denoiser.set_context(context)
        self._decoder.start(sizes)
        maker = ChunkMaker(denoiser, ChunkMemory(model.window, model.sink, model.chunk, model.position_limit))
        self._source = ChunksAhead(maker, _chunk_count(model, frames)) if self.overlaps else maker
        return self._source

    def _resize(self, source: ChunkSource) -> None:
        """Take on the size that was asked for since the last chunk."""
        size, self._pending_size = self._pending_size, None
        if size is not None and size != self._size:
            sizes = self._sizes(size)
            self._decoder.resize(sizes, source.resize(sizes))
            self._size = size

    def _decode(self, made: MadeChunk) -> Frames:
        start = time.perf_counter()
        picture = self._decoder.decode_latents(made.latents) if self.overlaps else self._decoder.decode(self._denoiser)
        self.times.add(made.seconds, time.perf_counter() - start, len(picture))
        self.passes.chunks, self.passes.passes = made.after.passes.chunks, made.after.passes.passes
        return picture

    def _end_stream(self) -> None:
        self._streams += 1
        if self._source is not None:
            self._source.close()
            self._source = None


def _overlaps(backend: Backend, wanted: bool | None) -> bool:
    if not can_overlap(backend):
        if wanted:
            raise UsageError(f"{backend.name} runs one component at a time", hint="leave overlap out")
        return False
    return backend.overlaps if wanted is None else wanted


def _chunk_count(model: ModelEntry, frames: int | None) -> int | None:
    """Chunks that hold ``frames`` frames."""
    return (
        None if frames is None else math.ceil((frames + model.dropped_frames) / (model.chunk * model.temporal_stride))
    )
