"""The Fréchet distance between two sets of features, each taken for a normal distribution.

Dowson and Landau, "The Fréchet distance between multivariate normal distributions" (1982); on a network's features it
judges pictures (Heusel et al., 2017). A set as small as its number of dimensions is far from another one of the same
source: compare distances between sets of equal size only, and with that of two sets of the real thing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Squared distance of features [N, D] and [M, D], N and M at least 2.

    |m1 - m2|² + tr C1 + tr C2 - 2 tr (C1 C2)^½. With C = RᵀR, the last trace is the sum of the singular values of
    R1 R2ᵀ, which needs no root of a matrix and stays exact where a covariance is singular.
    """
    means, roots = zip(*(_moments(features) for features in (one, other)), strict=True)
    spread = sum(root.square().sum() for root in roots)
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    distance = (means[0] - means[1]).square().sum() + spread - 2 * shared
    return max(0.0, float(distance))  # rounding may leave a few 1e-16 below zero


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [D] and R [min(N, D), D] with RᵀR the covariance, float64. Raises ValueError for a single row."""
    if len(features) < 2:
        raise ValueError("a covariance needs two rows of features or more")
    features = features.detach().cpu().double()
    mean = features.mean(0)
    return mean, torch.linalg.qr(features - mean, mode="r").R / (len(features) - 1) ** 0.5
