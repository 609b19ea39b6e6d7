"""Where a chunk's keys and values go in the ring.

Attention does not care about the order of keys that carry their rotary position already, so the oldest chunk outside
the sink is simply overwritten.

A ring may be longer than the window of the frames that use it, where its length is that of a package's greatest size.
Slots are counted in the tokens of the actual frames, so smaller frames use the beginning of the ring, and the valid
length hides the rest.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class RingLayout:
    """A window of latent frames: the first ``sink`` frames of the stream stay, the others take turns.

    ``window`` counts the sink and the chunk being generated. All three are in latent frames; window and sink are
    multiples of ``chunk``, so no write straddles the end. Raises ValueError otherwise.
    """

    window: int
    sink: int
    chunk: int

    def __post_init__(self) -> None:
        if self.chunk <= 0 or self.sink < 0 or self.window % self.chunk or self.sink % self.chunk:
            raise ValueError(f"window {self.window} and sink {self.sink} must be multiples of chunk {self.chunk}")
        if self.window < self.sink + self.chunk:
            raise ValueError(f"window {self.window} has no room for a chunk of {self.chunk} beside sink {self.sink}")

    def slot(self, chunk_index: int) -> int:
        """The first latent frame of the ring that a chunk writes; chunks count from 0."""
        frame = chunk_index * self.chunk
        if frame < self.sink:
            return frame
        return self.sink + (frame - self.sink) % (self.window - self.sink)

    def length(self, chunk_index: int) -> int:
        """Latent frames of the ring that hold something once a chunk is written; they are the first ones."""
        return min((chunk_index + 1) * self.chunk, self.window)
