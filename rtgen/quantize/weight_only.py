"""Symmetric round-to-nearest quantization of matrices to INT4, block by block. numpy only, no calibration."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

LOWEST: Final = -8
HIGHEST: Final = 7
"""The ends of INT4."""

CLIPPING: Final = (1.0, 0.93, 0.86, 0.79, 0.72)
"""Candidates for the share of a block's amax that the code 7 stands for.

Clipping one weight of a block lets the steps of the other 63 be finer. Below 7/8 of amax even a negative extreme, which
has the code -8 to go to, is clipped.
"""

SLAB: Final = 1 << 16
"""Elements that are worked on at once: few enough for the processor's cache, whatever the matrix measures."""


def quantize_blocks(weight: NDArray[np.floating], block: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes ``[out, in]`` from -8 to 7 and float16 scales ``[out, in / block]`` of a matrix ``[out, in]``.

    A scale is amax / 7 of its block times whichever candidate of :data:`CLIPPING` leaves the least squared error.
    Raises ValueError when ``in`` is no multiple of ``block``, and for numbers that are not finite or have a scale
    beyond float16.
    """
    if weight.ndim != 2 or weight.shape[1] % block:
        raise ValueError(f"a matrix of shape {list(weight.shape)} has no whole blocks of {block}")
    codes = np.empty(weight.shape, np.int8)
    scales = np.empty((weight.shape[0], weight.shape[1] // block), np.float16)
    rows = max(1, SLAB // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], rows):
        slab = slice(start, start + rows)
        blocks = weight[slab].astype(np.float32).reshape(-1, block)
        flat = _scales(blocks)
        codes[slab] = _codes(blocks, flat).reshape(-1, weight.shape[1])
        scales[slab] = flat.reshape(-1, scales.shape[1])
    return codes, scales


def _scales(blocks: NDArray[np.float32]) -> NDArray[np.float16]:
    """The best scale of each row of ``blocks``."""
    amax = np.abs(blocks).max(axis=1, initial=0.0)
    if not np.isfinite(amax).all():
        raise ValueError("it holds numbers that are not finite")
    if amax.max(initial=0.0) / HIGHEST > np.finfo(np.float16).max:
        raise ValueError("its numbers are too large for float16 scales")
    steps = blocks * (HIGHEST / np.where(amax > 0, amax, 1.0)).astype(np.float32)[:, None]
    least, best = np.full(len(blocks), np.inf, np.float32), np.ones(len(blocks), np.float32)
    for share in CLIPPING:
        scaled = steps / np.float32(share)
        missed = np.clip(np.rint(scaled), LOWEST, HIGHEST) - scaled
        error = np.einsum("bi,bi->b", missed, missed) * np.float32(share * share)
        better = error < least
        least[better], best[better] = error[better], share
    return np.asarray(amax * best / HIGHEST, np.float16)


def _codes(blocks: NDArray[np.float32], scales: NDArray[np.float16]) -> NDArray[np.int8]:
    # Codes are chosen for the scales as they are stored. A scale that float16 rounds to 0 makes its whole block 0.
    divisors = np.where(scales > 0, scales, np.float16(np.inf)).astype(np.float32)
    return np.asarray(np.clip(np.rint(blocks / divisors[:, None]), LOWEST, HIGHEST), np.int8)


def dequantize_blocks(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """The matrix ``[out, in]`` that codes and scales stand for."""
    out, blocks = scales.shape
    values = codes.reshape(out, blocks, -1).astype(np.float32) * scales.astype(np.float32)[:, :, None]
    return values.reshape(codes.shape)


def pack_int4(codes: NDArray[np.int8]) -> bytes:
    """Two codes a byte, the first in the low half, as ONNX stores INT4; the last half is 0 for an odd count."""
    flat = np.ravel(codes)
    if flat.size % 2:
        flat = np.append(flat, np.int8(0))
    halves = flat.view(np.uint8) & 0x0F
    return (halves[0::2] | (halves[1::2] << 4)).tobytes()
