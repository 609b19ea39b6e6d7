"""ONNX's QuantizeLinear and DequantizeLinear in torch."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_linear(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Codes of x: x / scale rounded to nearest, ties to even, plus ``zero``, in the type of ``zero`` and its limits.

    ``scale`` (float32) and ``zero`` (uint8 or int8) are scalars, or vectors along the first dimension of x.
    """
    limits = torch.iinfo(zero.dtype)
    return ((x / _along(scale, x)).round() + _along(zero, x)).clamp(limits.min, limits.max).to(zero.dtype)


def dequantize_linear(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(codes - zero) * scale, float32; shapes as in :func:`quantize_linear`."""
    return (codes.float() - _along(zero, codes).float()) * _along(scale, codes)


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Values of the first dimension of x, or one for all of it, in a shape that broadcasts against x."""
    return values.reshape(-1, *(1,) * (x.dim() - 1))
