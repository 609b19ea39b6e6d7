"""One chunk of latents: the denoise passes and the clean pass, through the K/V ring."""

import threading
from collections.abc import Mapping

import numpy as np

from rtgen.engine.manifest import ModelEntry
from rtgen.runtime.adaptive import AdaptiveSteps, PassCount
from rtgen.runtime.chunk_memory import ChunkMemory
from rtgen.runtime.kv_cache import RingLayout
from rtgen.runtime.noise import chunk_noise
from rtgen.runtime.rope import axis_table
from rtgen.runtime.session import Array, Session

NOISE = "noise"
FRAME_TOKENS = "frame_tokens"
"""Tokens of a latent frame: an input of denoisers whose K/V ring holds codes."""


class StoppedError(Exception):
    """The chunk in the making is not wanted any more; it never reaches a user."""


class Denoiser:
    """Drives a denoiser session (see ``rtgen.export.denoiser`` for what one pass computes).

    ``written`` counts the chunks that the ring has been given since it was last cleared; it decides the slot. A
    chunk's number decides its noise, and its position in time (in latent frames) its rotary embedding.

    With an ``error_budget`` above 0 (see ``rtgen.runtime.adaptive``) a chunk may do with fewer passes than the model
    has noise levels, and the host waits for each of them but the first.
    """

    def __init__(
        self,
        session: Session,
        model: ModelEntry,
        sizes: Mapping[str, int],
        seed: int,
        error_budget: float = 0.0,
        *,
        adaptive: bool = False,
    ) -> None:
        """``adaptive``: whether the budget may change while the stream runs (``steps.budget``), from 0 too.

        Raises UsageError for an impossible ``error_budget``.
        """
        self.session, self.model, self.seed = session, model, seed
        self.steps = AdaptiveSteps(model.sigmas, model.sampler, error_budget) if error_budget or adaptive else None
        self.stop = threading.Event()
        """Once set, from any thread: no further pass begins, and the chunk in the making ends with StoppedError."""
        self.passes = PassCount(len(model.sigmas))
        self.ring = RingLayout(model.window, model.sink, model.chunk)
        self._context: Array | None = None
        self._ahead: tuple[int, Array] | None = None
        self.resize(sizes)

    def resize(self, sizes: Mapping[str, int]) -> None:
        """Make the buffers for frames of a size; the ring is empty, and the prompt is what it was.

        Raises MemoryPlanError when the device has no room.
        """
        session, model = self.session, self.model
        self.frame_tokens = sizes["rows"] * sizes["columns"]
        self.written = 0
        self._ahead = None
        session.allocate(sizes)
        session.reset()
        height, width = (model_side(model, sizes, axis) for axis in (0, 1))
        self.latent_shape = (1, model.latent_channels, model.chunk, height, width)
        _, rows, columns = model.rope_split
        session.write("rope_height", axis_table(np.arange(sizes["rows"]), rows, model.rope_theta))
        session.write("rope_width", axis_table(np.arange(sizes["columns"]), columns, model.rope_theta))
        if any(tensor.name == FRAME_TOKENS for tensor in session.component.inputs):
            session.write(FRAME_TOKENS, np.array([self.frame_tokens], np.int64))
        if self._context is not None:
            self.set_context(self._context)

    def set_context(self, context: Array) -> None:
        """The encoded prompt, [1, tokens, dim] float32."""
        self._context = context
        self.session.write("context", context)
        if self.steps is not None:
            self.steps.forget()

    def generate(self, chunk: int, position: int) -> None:
        """Make chunk number ``chunk`` of the stream; its latents stay in the session's ``denoised``."""
        self._enter(position)
        self.session.write("clean", np.zeros(self.latent_shape, np.float32))
        self.session.write(NOISE, self._first_noise(chunk))
        level = passes = 0
        while level < len(self.model.sigmas):
            self._run(self.model.sigmas[level])
            passes += 1
            self.session.copy("clean", self.session, "denoised")
            level = self._next_level(level)
            if self.model.sampler == "euler":
                self.session.copy(NOISE, self.session, "noise_estimate")
            elif level < len(self.model.sigmas):
                self.session.write(NOISE, chunk_noise(self.seed, chunk, level, self.latent_shape))
        self._run(0.0)
        self.passes.chunks += 1
        self.passes.passes += passes
        self.written += 1
        # Drawn while a GPU is at the clean pass: it would wait for it between two chunks.
        self._ahead = chunk + 1, self._first_noise(chunk + 1)

    def refill(self, memory: ChunkMemory) -> None:
        """Fill the ring again with what it remembers, as the present prompt sees it: a clean pass each (LongLive)."""
        self.written = 0
        for position, latents in memory.chunks:
            self._enter(position)
            self.session.write("clean", latents)
            self._run(0.0)
            self.written += 1

    def _first_noise(self, chunk: int) -> Array:
        if self._ahead is not None and self._ahead[0] == chunk:
            return self._ahead[1]
        return chunk_noise(self.seed, chunk, 0, self.latent_shape)

    def _next_level(self, level: int) -> int:
        if self.steps is None:
            return level + 1
        return self.steps.after(level, float(self.session.read("change")[0]) if level else None)

    def _enter(self, position: int) -> None:
        positions = np.arange(position, position + self.model.chunk)
        self.session.write("rope_time", axis_table(positions, self.model.rope_split[0], self.model.rope_theta))
        for name, frames in (
            ("write_index", self.ring.slot(self.written)),
            ("valid_length", self.ring.length(self.written)),
        ):
            self.session.write(name, np.array([frames * self.frame_tokens], np.int64))

    def _run(self, sigma: float) -> None:
        if self.stop.is_set():
            raise StoppedError
        self.session.write("sigma", np.array([sigma], np.float32))
        self.session.run()


def model_side(model: ModelEntry, sizes: Mapping[str, int], axis: int) -> int:
    """Latent rows (axis 0) or columns (axis 1) of a frame."""
    return sizes[("rows", "columns")[axis]] * model.size_step[axis] // model.spatial_stride
