"""How far single passes of a denoiser are off, apart from where a stream of them would lead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from rtgen.runtime.denoise import Denoiser

if TYPE_CHECKING:
    from rtgen.engine.manifest import ComponentEntry, ModelEntry
    from rtgen.runtime.session import Array, Session


class PairedSession:
    """Two denoisers behind the interface of one. Both are given the reference's inputs; each has a K/V ring of its own.

    ``signal`` and ``noise`` are sums of squares of the reference's velocities, and of how far the candidate's are off.
    """

    def __init__(self, candidate: Session, reference: Session) -> None:
        self.component: ComponentEntry = candidate.component
        self._candidate, self._reference = candidate, reference
        self.signal = self.noise = 0.0

    def allocate(self, sizes: Mapping[str, int]) -> None:
        self._candidate.allocate(sizes)
        self._reference.allocate(sizes)

    def write(self, name: str, value: Array) -> None:
        for session in (self._candidate, self._reference):
            if any(tensor.name == name for tensor in session.component.inputs):  # one ring may hold codes, one floats
                session.write(name, value)

    def copy(self, name: str, source: Session, source_name: str) -> None:
        self.write(name, source.read(source_name))

    def run(self) -> None:
        self._candidate.run()
        self._reference.run()
        candidate, reference = (velocity(session) for session in (self._candidate, self._reference))
        self.signal += float(np.sum(np.square(reference)))
        self.noise += float(np.sum(np.square(candidate - reference)))

    def read(self, name: str) -> Array:
        return self._reference.read(name)

    def reset(self) -> None:
        self._candidate.reset()
        self._reference.reset()

    def close(self) -> None:
        """Both belong to whoever opened them."""


def velocity(session: Session) -> Array:
    """What the last pass predicted: both of its estimates are the input, moved along the velocity."""
    difference: Array = session.read("noise_estimate").astype(np.float64) - session.read("denoised")
    return difference


def velocity_snr(
    candidate: Session, reference: Session, model: ModelEntry, sizes: Mapping[str, int], context: Array, chunks: int
) -> float | None:
    """Signal-to-noise ratio in dB of the candidate's velocities, over all passes of the first ``chunks`` chunks.

    ``context`` [1, tokens, dim] float32 is an encoded prompt. None where there is no difference. A velocity that is
    not finite makes it minus infinity's stand-in, -100.
    """
    pair = PairedSession(candidate, reference)
    denoiser = Denoiser(pair, model, sizes, seed=0)
    denoiser.set_context(context)
    for chunk in range(chunks):
        denoiser.generate(chunk, chunk * model.chunk)
    if pair.noise == 0.0:
        return None
    ratio = pair.signal / pair.noise
    return round(10 * math.log10(ratio), 2) if math.isfinite(ratio) and ratio > 0 else -100.0
