"""Rounding a matrix column by column, where later columns make up for what earlier ones lost (GPTQ).

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv:2210.17323.
"""

from __future__ import annotations

from typing import Final, Protocol

import torch
from torch import Tensor

DAMPING: Final = 0.01
"""Added to the diagonal of the second moments, as a share of its mean; the paper's value."""

WINDOW: Final = 2048
"""Columns that make up for each other. Bounds the work for wide matrices, which grows with its square."""

REMAINS: Final = 0.15
"""About the share of rounding's squared error, in a layer's output, that compensation leaves: between 5 and 30 % for
the layers of ``postcard``."""


class BlockRounding(Protocol):
    """A number format, taken in blocks of a row."""

    @property
    def block(self) -> int:
        """Columns that have one scale in each row; a divisor of :data:`WINDOW`."""

    def scales(self, weights: Tensor) -> Tensor:
        """Scales [out] float32 of one block of each row, [out, block]."""

    def units(self, values: Tensor) -> Tensor:
        """The numbers of the format, before scaling, that are nearest to ``values``."""


class Compensation:
    """How columns make up for each other, for the inputs of one layer or of several."""

    def __init__(self, inputs: Tensor) -> None:
        """``inputs``: [n, in], as the layer is given them, rounded if they will be."""
        self._factors = [_factor(columns) for columns in torch.split(inputs.float(), WINDOW, dim=1)]

    def round(self, weight: Tensor, rounding: BlockRounding) -> tuple[Tensor, Tensor]:
        """Units [out, in] and scales [out, blocks] of a matrix [out, in], both float32; a weight is unit * scale.

        Each column is rounded after it took over its share of the errors of those before; a block's scales are found
        when its turn comes.
        """
        windows = torch.split(weight, WINDOW, dim=1)
        parts = [_round(window, factor, rounding) for window, factor in zip(windows, self._factors, strict=True)]
        return torch.cat([units for units, _ in parts], dim=1), torch.cat([scales for _, scales in parts], dim=1)


def _factor(inputs: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped second moments of inputs [n, in]: [in, in] float32."""
    moments = inputs.T @ inputs / len(inputs)
    mean = moments.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damping = DAMPING
    while True:
        identity = torch.eye(len(moments), device=moments.device)
        lower, failed = torch.linalg.cholesky_ex(moments + identity * (damping * mean))
        if not failed:
            inverse = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not inverse.info:
                return torch.triu(inverse.L)
        damping *= 10  # few rows, or channels that copy each other


def _round(weight: Tensor, factor: Tensor, rounding: BlockRounding) -> tuple[Tensor, Tensor]:
    weight = weight.clone()
    units, scales = torch.empty_like(weight), []
    for start in range(0, weight.shape[1], rounding.block):
        stop = min(start + rounding.block, weight.shape[1])
        columns, own = weight[:, start:stop], factor[start:stop, start:stop]
        scale = rounding.scales(columns)
        divisor = torch.where(scale == 0, torch.inf, scale)  # a scale of 0 makes a whole block 0
        errors = torch.empty_like(columns)
        for index in range(stop - start):
            unit = rounding.units(columns[:, index] / divisor)
            units[:, start + index] = unit
            error = (columns[:, index] - unit * scale) / own[index, index]
            columns[:, index + 1 :] -= error[:, None] * own[index, index + 1 :]
            errors[:, index] = error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
        scales.append(scale)
    return units, torch.stack(scales, dim=1)
