"""What the K/V ring remembers: the clean latents of each chunk in it, and where in time they stand."""

from dataclasses import dataclass, field

from rtgen.engine.manifest import Size
from rtgen.runtime.resize import resized_latents
from rtgen.runtime.session import Array


@dataclass
class ChunkMemory:
    """The chunks beside the one in the making; all sizes are in latent frames, as in ``RingLayout``.

    A chunk's position in time is what attention sees of its age. Positions end at ``limit``: before they would,
    :meth:`rebase` counts them anew, the sink from 0 and the latest chunks after it without a gap. Attention depends on
    differences of positions only, so the latest chunks see each other as before, and the sink comes nearer.
    """

    window: int
    sink: int
    chunk: int
    limit: int
    position: int = 0
    """Where the next chunk begins."""
    chunks: list[tuple[int, Array]] = field(default_factory=list)
    """Position and latents of each remembered chunk, oldest first."""

    @property
    def is_at_limit(self) -> bool:
        """Whether the next chunk would stand beyond the limit."""
        return self.position + self.chunk > self.limit

    def add(self, latents: Array) -> None:
        """Remember the chunk that was just made, and forget the oldest one outside the sink if the window is full."""
        self.chunks.append((self.position, latents))
        self.position += self.chunk
        if len(self.chunks) == self.window // self.chunk:
            del self.chunks[self.sink // self.chunk]

    def rebase(self) -> None:
        """Count positions anew. The ring must be filled again (``Denoiser.refill``): its keys carry the old ones."""
        self.chunks = [(index * self.chunk, latents) for index, (_, latents) in enumerate(self.chunks)]
        self.position = len(self.chunks) * self.chunk

    @property
    def latest(self) -> Array | None:
        """The latents of the chunk that was made last, if it is remembered."""
        return self.chunks[-1][1] if self.chunks else None

    def resize(self, size: Size) -> None:
        """Remember the same chunks in another size of latents (height, width); the ring must be filled again."""
        self.chunks = [(position, resized_latents(latents, size)) for position, latents in self.chunks]
