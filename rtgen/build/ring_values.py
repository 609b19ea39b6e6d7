"""A ring of codes as numbers, which is how two of them can be compared: a sign may lie in the codes or in the scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from rtgen.export.ring_states import CENTRES, CODES, SCALES

if TYPE_CHECKING:
    from rtgen.engine.manifest import ComponentEntry
    from rtgen.runtime.session import Array, Session

VALUES: Final = "kv_values"
"""What a layer's keys and values are called in place of their codes and scales."""


def comparable_states(component: ComponentEntry) -> Iterator[tuple[str, Callable[[Session], Array]]]:
    """Each state's name and how it is read from a session; codes and scales of a layer make one, float32.

    Past frames in codes are left out: they lie there in a form where neighbouring codes may be far apart
    (``rtgen.export.coded_convolution``), and the frames that they lead to are compared anyway.
    """
    coded = {tensor.name for tensor in component.inputs if tensor.dtype == "uint8"}
    for state in component.states:
        name = state.output
        if state.input in coded:
            continue
        if name.startswith(CODES):
            yield name.replace(CODES, VALUES), _decoder(name)
        elif not name.startswith(SCALES):
            yield name, _reader(name)


def decoded(codes: Array, scales: Array, width: int) -> Array:
    """Numbers float32 [.., width] from packed codes int8 [.., width * bits / 8] and scales [..]."""
    if codes.shape[-1] < width:  # of two 4-bit codes the first is the low half of a byte
        codes = np.stack([codes << 4 >> 4, codes >> 4], axis=-1).reshape(*codes.shape[:-1], width)
    numbers: Array = codes.astype(np.float32) * scales.astype(np.float32)[..., None]
    return numbers


def _reader(name: str) -> Callable[[Session], Array]:
    return lambda session: session.read(name)


def _decoder(name: str) -> Callable[[Session], Array]:
    def read(session: Session) -> Array:
        width = session.read(name.replace(CODES, CENTRES)).shape[-1]
        return decoded(session.read(name), session.read(name.replace(CODES, SCALES)), width)

    return read
