"""Latents and frames in another size."""

import numpy as np
from numpy.typing import NDArray

from rtgen.engine.manifest import Size
from rtgen.runtime.session import Array


def resized_latents(latents: Array, size: Size) -> Array:
    """Latents [..., h, w] float32 as [..., *size], bilinear: sample centres at half pixels, edges held."""
    found = latents
    for axis, length in ((-2, size[0]), (-1, size[1])):
        found = _along(found, axis, length)
    return found


def _along(values: Array, axis: int, length: int) -> Array:
    before = values.shape[axis]
    if before == length:
        return values
    places = np.clip((np.arange(length) + 0.5) * (before / length) - 0.5, 0, before - 1)
    low = np.minimum(places.astype(np.int64), max(before - 2, 0))
    share = (places - low).astype(np.float32)
    weights = share if axis == -1 else share[:, None]
    first, second = (np.take(values, np.minimum(low + step, before - 1), axis=axis) for step in (0, 1))
    mixed: Array = first + (second - first) * weights
    return mixed


def fitted(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """A frame [H, W, 3] uint8 RGB within a picture of ``size``: its shape is kept, and what is left over is black."""
    if pixels.shape[:2] == size:
        return pixels
    from av import VideoFrame

    scale = min(size[0] / pixels.shape[0], size[1] / pixels.shape[1])
    height, width = (max(1, min(most, round(side * scale))) for side, most in zip(pixels.shape[:2], size, strict=True))
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    scaled = frame.reformat(width=width, height=height, interpolation="BICUBIC").to_ndarray()
    picture = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    picture[top : top + height, left : left + width] = scaled
    return picture
