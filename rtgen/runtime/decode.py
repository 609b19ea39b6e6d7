"""The latents of a chunk to frames: one run of the decoder, or one for every few latent frames."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rtgen.engine.manifest import Dimension, ModelEntry
from rtgen.errors import PackageInvalidError
from rtgen.runtime.session import Array, Session

Frames = NDArray[np.uint8]
"""RGB, [F, H, W, 3]."""


class Decoder:
    """Drives a decoder session (see ``rtgen.export.streaming`` for its inputs).

    Its table says how many latent frames a run takes: all of the chunk, or as many as ``latent_frames`` names.
    """

    def __init__(self, session: Session, model: ModelEntry) -> None:
        """Raises PackageInvalidError for a decoder that does not divide the chunk."""
        self.session, self.model = session, model
        inputs = {tensor.name: tensor for tensor in session.component.inputs}
        self._marks_first = "first" in inputs
        self._picks = _picked(inputs["latent_frames"].shape, model.chunk) if "latent_frames" in inputs else None
        self._opens = True

    def start(self, sizes: Mapping[str, int]) -> None:
        """Make the buffers for these values of the symbolic dimensions, and begin a stream."""
        self.session.allocate(sizes)
        self.session.reset()
        self._opens = True

    def resize(self, sizes: Mapping[str, int], latents: Array | None) -> None:
        """Go on in another size. ``latents``: of the chunk before, in that size; None if there was none.

        They are decoded once more, for the past frames of the convolutions alone.
        """
        self.start(sizes)
        if latents is not None:
            self.decode_latents(latents)

    def decode(self, denoiser: Session) -> Frames:
        """The frames of the chunk that ``denoiser`` just made, without those at the start that do not exist."""
        self.session.copy("latents", denoiser, "denoised")
        return self._frames()

    def decode_latents(self, latents: Array) -> Frames:
        """The same from latents on the host, [1, channels, latent frames, height, width] float32.

        They are copied, so the denoiser may go on meanwhile where the backend overlaps.
        """
        self.session.write("latents", latents)
        return self._frames()

    def _frames(self) -> Frames:
        if self._picks is None:
            return self._run()
        parts = []
        for start in range(0, self.model.chunk, self._picks):
            self.session.write("latent_frames", np.arange(start, start + self._picks, dtype=np.int64))
            parts.append(self._run())
        return np.concatenate(parts)

    def _run(self) -> Frames:
        if self._marks_first:
            self.session.write("first", np.array([float(self._opens)], np.float32))
        self.session.run()
        frames: Frames = self.session.read("frames")
        if self._opens:
            frames = frames[self.model.dropped_frames :]
        self._opens = False
        return frames


def _picked(shape: tuple[Dimension, ...], chunk: int) -> int:
    """How many latent frames a run takes, by the shape of ``latent_frames``."""
    count = shape[0] if len(shape) == 1 else None
    if not isinstance(count, int) or count < 1 or chunk % count:
        raise PackageInvalidError(f"the decoder takes {list(shape)} of {chunk} latent frames", hint="rtgen build")
    return count
