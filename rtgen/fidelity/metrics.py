"""How far one clip lies from another: PSNR and SSIM, frame by frame, and drift, over a whole clip.

Frames are uint8 RGB, [F, H, W, 3]. Both clips come from the same prompt and seed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Frames = NDArray[np.uint8]
Values = NDArray[np.float64]

PEAK: Final = 255.0

SSIM_WINDOW: Final = 11
SSIM_SIGMA: Final = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03
"""Gaussian window and constants of "Image quality assessment: from error visibility to structural similarity" (Wang et
al., 2004), section III."""

JUST_NOTICEABLE: Final = 2.3
"""Distance in CIELAB that an observer just notices (Mahy et al., "Evaluation of uniform color spaces", 1994)."""

# sRGB (IEC 61966-2-1) to CIE XYZ, white point D65.
_XYZ: Final = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_FRAMES_AT_ONCE: Final = 16


def squared_errors(candidate: Frames, reference: Frames) -> Values:
    """The mean squared error of each frame, [F], in squared 8-bit levels. Raises ValueError for unequal shapes."""
    _check(candidate, reference)
    return np.array(
        [
            np.mean(np.square(one.astype(np.int32) - other.astype(np.int32)), dtype=np.float64)
            for one, other in zip(candidate, reference, strict=True)
        ]
    )


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal pictures.

    Over several frames or clips it is that of the mean of all squared errors, not the mean of the frames' ratios: one
    broken frame shows.
    """
    return 10 * math.log10(PEAK**2 / mean_squared_error) if mean_squared_error > 0 else math.inf


def similarities(candidate: Frames, reference: Frames) -> Values:
    """The mean structural similarity (SSIM) of each frame, [F], at most 1; the mean of the three colours.

    Where the window leaves the picture there is no value, so sides must be at least 11 pixels. Raises ValueError.
    """
    _check(candidate, reference)
    if min(candidate.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels")
    parts = [
        _similarity(candidate[start : start + _FRAMES_AT_ONCE], reference[start : start + _FRAMES_AT_ONCE])
        for start in range(0, len(candidate), _FRAMES_AT_ONCE)
    ]
    return np.concatenate(parts)


def _similarity(candidate: Frames, reference: Frames) -> Values:
    x, y = _planes(candidate), _planes(reference)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x * mean_x
    variance_y = _blurred(y * y) - mean_y * mean_y
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    per_plane: Values = (luminance * structure).mean(dim=(1, 2, 3)).double().numpy()
    per_frame: Values = per_plane.reshape(-1, 3).mean(axis=1)
    return per_frame


def _planes(frames: Frames) -> Tensor:
    """[F * 3, 1, H, W] float32."""
    import torch

    return torch.from_numpy(np.array(frames.transpose(0, 3, 1, 2))).float().flatten(0, 1).unsqueeze(1)


def _blurred(planes: Tensor) -> Tensor:
    """The Gaussian mean around every pixel whose window lies inside the picture."""
    return _weighted(_weighted(planes, 2), 3)


def _weighted(planes: Tensor, axis: int) -> Tensor:
    """Weighted sums of neighbours along an axis; sums of shifted pictures are far faster than a convolution here."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    length = planes.shape[axis] - SSIM_WINDOW + 1
    total = planes.narrow(axis, 0, length) * float(weights[0])
    for start, weight in enumerate(weights[1:], start=1):
        total.add_(planes.narrow(axis, start, length), alpha=float(weight))
    return total


def mean_colour(frames: Frames) -> Values:
    """The mean colour of frames in CIELAB, [3]: lightness, green to red, blue to yellow."""
    colour: Values = np.mean([_lab(frame).mean(axis=(0, 1)) for frame in frames], axis=0)
    return colour


def detail(frames: Frames) -> float:
    """The mean step between neighbouring pixels, across and down, in 8-bit levels: less when pictures blur."""
    steps = [np.abs(np.diff(frame.astype(np.int16), axis=axis)).mean() for frame in frames for axis in (0, 1)]
    return float(np.mean(steps))


def _lab(frame: Frames) -> Values:
    coded = frame.astype(np.float64) / PEAK
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    scaled = linear @ (_XYZ / _XYZ.sum(axis=1, keepdims=True)).T
    cube = np.where(scaled > (6 / 29) ** 3, np.cbrt(scaled), scaled / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = cube[..., 0], cube[..., 1], cube[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _check(candidate: Frames, reference: Frames) -> None:
    if candidate.shape != reference.shape:
        raise ValueError(f"clips of shapes {list(candidate.shape)} and {list(reference.shape)} cannot be compared")
    if not len(candidate):
        raise ValueError("a clip without frames cannot be compared")
