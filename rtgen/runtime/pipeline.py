"""From a prompt to frames: text encoder once, then denoise and decode chunk by chunk. Knows no backend."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from rtgen.engine.manifest import Manifest, Size
from rtgen.engine.package import Package, open_package
from rtgen.errors import SizeError, UsageError
from rtgen.runtime.adaptive import PassCount, checked_budget
from rtgen.runtime.backends import open_backend
from rtgen.runtime.chunk_memory import ChunkMemory
from rtgen.runtime.decode import Decoder, Frames
from rtgen.runtime.denoise import Denoiser
from rtgen.runtime.noise import SEED_LIMIT
from rtgen.runtime.profiles import choose_profile
from rtgen.runtime.session import Array, Backend, Session
from rtgen.runtime.text import PromptEncoder


class Pipeline:
    """An open engine package. Use as a context manager, or call :meth:`close`.

    One stream at a time: starting another ends the one before.
    """

    def __init__(self, package: Package, backend: Backend, *, remember_prompts: bool = True) -> None:
        """``remember_prompts``: whether encoded prompts may be kept on the disk (see ``rtgen.runtime.embeddings``)."""
        self.package, self.backend = package, backend
        self.warnings: tuple[str, ...] = ()
        """What was lost of the last prompt, such as words that the model does not know."""
        self.passes = PassCount(len(package.manifest.model.sigmas))
        """Denoise passes of the newest stream so far."""
        self._prompt = ""
        self._pending: str | None = None
        self._streams = 0  # started so far; only the newest goes on
        self._text = PromptEncoder(package, backend, remember=remember_prompts)
        self._denoiser: Session = backend.open("denoiser")
        self._decoder = Decoder(backend.open("decoder"), package.manifest.model)

    @classmethod
    def open(cls, package: Path | str, backend: str = "auto") -> Self:
        """Verify and load a package folder.

        Raises PackageInvalidError, PackageMismatchError, NoGpuError, MemoryPlanError or UsageError.
        """
        opened = open_package(Path(package))
        return cls(opened, open_backend(opened, backend))

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

    def stream(
        self,
        prompt: str,
        *,
        seed: int = 0,
        frames: int | None = None,
        size: Size | None = None,
        error_budget: float = 0.0,
    ) -> Iterator[Frames]:
        """Chunks of frames, uint8 RGB [F, H, W, 3], until ``frames`` are made; without ``frames`` it never ends.

        The same package, backend, prompt, seed, size and budget give the same bits. ``size`` is (height, width).
        ``error_budget`` is what leaving out denoise passes may change in a chunk: root mean square, in latent units
        (see ``rtgen.runtime.adaptive``); with 0 every pass runs.
        Raises PromptError, SizeError or UsageError at once, before the first chunk is asked for.
        """
        if not 0 <= seed < SEED_LIMIT:
            raise UsageError(f"the seed must be in 0 .. 2**63 - 1, not {seed}")
        if frames is not None and frames < 1:
            raise UsageError(f"frames must be at least 1, not {frames}")
        sizes = self._sizes(size or self.manifest.model.default_size)
        checked_budget(error_budget)
        context = self._encode(prompt)
        return self._chunks(context, seed, frames, sizes, error_budget)

    def close(self) -> None:
        """Release the sessions and their memory. Idempotent."""
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
        self, context: Array, seed: int, frames: int | None, sizes: dict[str, int], error_budget: float
    ) -> Iterator[Frames]:
        model = self.manifest.model
        denoiser = Denoiser(self._denoiser, model, sizes, seed, error_budget)
        self.passes = denoiser.passes
        denoiser.set_context(context)
        self._decoder.start(sizes)
        memory = ChunkMemory(model.window, model.sink, model.chunk, model.position_limit)
        self._streams += 1
        mine, made, chunk = self._streams, 0, 0
        while self._streams == mine and (frames is None or made < frames):
            pending, ends = self._pending, memory.is_at_limit
            if pending is not None:
                denoiser.set_context(self._encode(pending))
            if ends:
                memory.rebase()
            if pending is not None or ends:
                denoiser.refill(memory)
            denoiser.generate(chunk, memory.position)
            memory.add(self._denoiser.read("denoised"))
            picture = self._decoder.decode(self._denoiser)
            if frames is not None:
                picture = picture[: frames - made]
            made += len(picture)
            chunk += 1
            yield picture
