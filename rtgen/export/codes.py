"""ONNX's QuantizeLinear and DequantizeLinear as torch ops, so that a module can say where its numbers become codes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("rtgen::quantize_linear", mutates_args=())
def quantize_linear(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Codes of x: x / scale rounded to nearest, ties to even, plus ``zero``, in the type of ``zero`` and its limits.

    ``scale`` (float32) and ``zero`` (uint8 or int8) are scalars, or vectors along the first dimension of x.
    """
    limits = torch.iinfo(zero.dtype)
    return ((x / _along(scale, x)).round() + _along(zero, x)).clamp(limits.min, limits.max).to(zero.dtype)


@quantize_linear.register_fake
def _(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=zero.dtype)


@torch.library.custom_op("rtgen::dequantize_linear", mutates_args=())
def dequantize_linear(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(codes - zero) * scale, float32; shapes as in :func:`quantize_linear`."""
    return (codes.float() - _along(zero, codes).float()) * _along(scale, codes)


@torch.library.custom_op("rtgen::dequantize_bias", mutates_args=())
def dequantize_bias(codes: Tensor, scale: Tensor) -> Tensor:
    """codes * scale, float32; codes int32 and scale float32, [n] both. ONNX Runtime knows no zero of an int32 bias."""
    return codes * scale


@dequantize_linear.register_fake
def _(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@dequantize_bias.register_fake
def _(codes: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@cache
def translations() -> dict[Any, Callable[..., Any]]:
    """What the exporter writes for these ops."""
    from onnxscript import opset18 as ops  # what the exporter's own translations are written in

    return {
        torch.ops.rtgen.quantize_linear.default: lambda x, scale, zero: ops.QuantizeLinear(x, scale, zero, axis=0),
        torch.ops.rtgen.dequantize_linear.default: lambda x, scale, zero: ops.DequantizeLinear(x, scale, zero, axis=0),
        torch.ops.rtgen.dequantize_bias.default: lambda x, scale: ops.DequantizeLinear(x, scale, axis=0),
    }


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Values of the first dimension of x, or one for all of it, in a shape that broadcasts against x."""
    return values.reshape(-1, *(1,) * (x.dim() - 1))
