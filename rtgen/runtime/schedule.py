"""Noise levels of the few-step sampler."""

from collections.abc import Iterable
from itertools import pairwise

TRAINING_TIMESTEPS = 1000.0
"""A timestep is a thousand times its sigma (rectified flow)."""


def warp(sigma: float, shift: float) -> float:
    """Move a noise level towards 1, as large frames need: ``shift * sigma / (1 + (shift - 1) * sigma)``.

    From "Scaling Rectified Flow Transformers" (Esser et al., 2024), equation 23.
    Raises ValueError unless ``sigma`` is in 0 .. 1 and ``shift`` is positive.
    """
    if not 0.0 <= sigma <= 1.0:
        raise ValueError(f"sigma must be in 0 .. 1, got {sigma}")
    if shift <= 0.0:
        raise ValueError(f"shift must be positive, got {shift}")
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def sigmas(timesteps: Iterable[float], shift: float) -> tuple[float, ...]:
    """Warped noise levels of the denoise passes for timesteps out of 1000.

    Raises ValueError unless the timesteps descend and stay above 0 (the clean pass at 0 is not one of them).
    """
    steps = tuple(timesteps)
    if not steps or steps[-1] <= 0.0 or any(later >= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"timesteps must descend and stay above 0, got {steps}")
    return tuple(warp(timestep / TRAINING_TIMESTEPS, shift) for timestep in steps)
