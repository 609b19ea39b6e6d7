"""Matrices and activations in small number formats, as the weight file stores them. torch, on any device.

A matrix ``[out, in]`` becomes a dictionary of the tensors that :class:`rtgen.quantize.result.LayerResult` lists, by
suffix (``codes``, ``scales``, …). Rounding is to nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final, Protocol

import torch
from torch import Tensor

from rtgen.quantize.compensated import BlockRounding
from rtgen.quantize.weight_only import HIGHEST, LOWEST, quantize_blocks

Tensors = dict[str, Tensor]


class Rounding(BlockRounding, Protocol):
    """A weight format, and how the weight file stores it."""

    def stored(self, units: Tensor, scales: Tensor) -> Tensors:
        """The tensors of a matrix whose weights are unit * scale."""


INT8_HIGHEST: Final = 127
FP8_HIGHEST: Final = 448.0
"""Of E4M3 without infinities."""
FP4_HIGHEST: Final = 6.0
FP4_VALUES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of E2M1, by the code's lower three bits; the fourth is the sign."""
FP4_TOPS: Final = (6.0, 4.0)
"""Candidates for the value that a block's amax is given: up to 4 the steps are finer in proportion."""


class Int4Rounding:
    """INT4 in blocks, for ``rtgen.quantize.compensated``; scales as ``weight_only`` chooses them."""

    def __init__(self, block: int) -> None:
        self.block = block

    def scales(self, weights: Tensor) -> Tensor:
        _, scales = quantize_blocks(weights.cpu().numpy(), self.block)
        return torch.from_numpy(scales).flatten().float().to(weights.device)

    def units(self, values: Tensor) -> Tensor:
        return values.round().clamp(LOWEST, HIGHEST)

    def stored(self, units: Tensor, scales: Tensor) -> Tensors:
        """``codes`` uint8 [out, in / 2], two a byte, and ``scales`` float16 [out, in / block]."""
        return {"codes": packed_int4(units.to(torch.int8)), "scales": scales.half()}


class Int8Rounding:
    """INT8 with one scale a row, symmetric: 127 stands for the row's greatest magnitude."""

    block = 128  # columns at a time; the scale is the same for all

    def __init__(self, weight: Tensor) -> None:
        self._scales = weight.abs().amax(dim=1).float() / INT8_HIGHEST

    def scales(self, weights: Tensor) -> Tensor:
        return self._scales

    def units(self, values: Tensor) -> Tensor:
        return values.round().clamp(-INT8_HIGHEST, INT8_HIGHEST)

    def stored(self, units: Tensor, scales: Tensor) -> Tensors:
        """``codes`` uint8 [out, in], two's complement, and ``scales`` float32 [out]."""
        return {"codes": units.to(torch.int8).view(torch.uint8), "scales": self._scales}


class Fp8Rounding:
    """E4M3 with one scale a matrix: 448 stands for its greatest magnitude."""

    block = 128  # columns at a time; the scale is the same for all

    def __init__(self, weight: Tensor) -> None:
        amax = weight.abs().amax().float()
        self._scale = torch.where(amax > 0, amax / FP8_HIGHEST, torch.ones_like(amax))

    def scales(self, weights: Tensor) -> Tensor:
        return self._scale.expand(len(weights))

    def units(self, values: Tensor) -> Tensor:
        return _to_fp8(values).float()

    def stored(self, units: Tensor, scales: Tensor) -> Tensors:
        """``codes`` uint8 [out, in], the bytes of E4M3, and ``scales`` float32 []."""
        return {"codes": _to_fp8(units).view(torch.uint8), "scales": self._scale}


class Fp4Rounding:
    """NVFP4: E2M1 in blocks of 16 with E4M3 scales and one float32 scale of the matrix, which lets the greatest block
    scale be E4M3's greatest. Of a block's candidates (:data:`FP4_TOPS`) the one with the least squared error is taken.
    """

    block = 16

    def __init__(self, weight: Tensor) -> None:
        self.unit = fp4_unit(weight.abs().amax())

    def scales(self, weights: Tensor) -> Tensor:
        amax = weights.abs().amax(dim=1)
        least, best = torch.full_like(amax, torch.inf), torch.zeros_like(amax)
        for top in FP4_TOPS:
            scale = _to_fp8(amax / (top * self.unit)).float() * self.unit
            error = (_divided(weights, scale, self.units) - weights).square().sum(dim=1)
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        return best

    def units(self, values: Tensor) -> Tensor:
        return fp4_values(fp4_codes(values))

    def stored(self, units: Tensor, scales: Tensor) -> Tensors:
        """``codes`` uint8 [out, in / 2], ``scales`` uint8 [out, in / 16], the bytes of E4M3, ``scales_global``
        float32 []."""
        bytes_of_scales = _to_fp8(scales / self.unit).view(torch.uint8)
        return {"codes": _packed(fp4_codes(units)), "scales": bytes_of_scales, "scales_global": self.unit}


def rounding_of(weights: str, block: int | None, weight: Tensor) -> Rounding:
    """How a matrix [out, in] float32 is rounded to a weight format."""
    if weights == "int4":
        assert block is not None  # the recipe's schema says so
        return Int4Rounding(block)
    whole: Mapping[str, Callable[[Tensor], Rounding]] = {
        "int8": Int8Rounding,
        "fp8": Fp8Rounding,
        "fp4": Fp4Rounding,
    }
    return whole[weights](weight)


def rounded(weight: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """Units [out, in] and scales [out, blocks] of a matrix, each number to its nearest."""
    parts = []
    for columns in torch.split(weight, rounding.block, dim=1):
        scales = rounding.scales(columns)
        units = rounding.units(columns / torch.where(scales > 0, scales, torch.inf)[:, None])
        parts.append((units, scales))
    return torch.cat([units for units, _ in parts], dim=1), torch.stack([scales for _, scales in parts], dim=1)


def packed_int4(codes: Tensor) -> Tensor:
    """INT4 codes [out, in] int8 as uint8 [out, in / 2], two a byte, the first in the low half."""
    return _packed(codes.view(torch.uint8) & 0x0F)


def unpack_int4(packed: Tensor) -> Tensor:
    """INT4 codes [out, in] as int8."""
    halves = torch.stack([packed & 0x0F, packed >> 4], dim=-1).flatten(-2).to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves)


def fp4_unit(amax: Tensor) -> Tensor:
    """NVFP4's global scale of a tensor whose greatest magnitude is ``amax``, float32 []."""
    return torch.where(amax > 0, amax / (FP4_HIGHEST * FP8_HIGHEST), torch.ones_like(amax)).float()


def fp4_codes(values: Tensor) -> Tensor:
    """E2M1 codes (uint8) of numbers, rounded to nearest with ties to the even code, beyond 6 to 6."""
    magnitude = values.abs()
    middles = [(low + high) / 2 for low, high in pairwise(FP4_VALUES)]
    code = torch.zeros_like(magnitude, dtype=torch.uint8)
    for lower, middle in enumerate(middles):
        code += (magnitude > middle if lower % 2 == 0 else magnitude >= middle).to(torch.uint8)
    return torch.where(torch.signbit(values), code | 8, code)


def fp4_values(codes: Tensor) -> Tensor:
    """What E2M1 codes stand for, float32."""
    table = torch.tensor([*FP4_VALUES, *(-value for value in FP4_VALUES)], device=codes.device)
    return table[codes.long()]


def dequantize(weights: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The matrix [out, in] float32 that stored tensors of a format stand for."""
    return _DEQUANTIZERS[weights](tensors)


def round_int8(x: Tensor, scale: Tensor) -> Tensor:
    """``x`` after QuantizeLinear and DequantizeLinear to INT8."""
    return (x / scale).round().clamp(-INT8_HIGHEST - 1, INT8_HIGHEST) * scale


def round_at_run_time(x: Tensor) -> Tensor:
    """``x`` after DynamicQuantizeLinear and its inverse: 256 steps over the range of all of ``x`` and 0."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = torch.where(high > low, (high - low) / 255, torch.ones_like(high))
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale


def round_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """``x`` after QuantizeLinear and DequantizeLinear to E4M3, saturating."""
    return _to_fp8(x / scale).float() * scale


def round_fp4(x: Tensor, unit: Tensor, group: int = 16) -> Tensor:
    """``x`` [n, in] in NVFP4: an E4M3 scale for each group of a token, found from it, times the global ``unit``."""
    groups = x.reshape(len(x), -1, group)
    scales = _to_fp8(groups.abs().amax(dim=2) / (FP4_HIGHEST * unit)).float() * unit
    return _divided(groups, scales, lambda values: fp4_values(fp4_codes(values))).flatten(1)


def _to_fp8(values: Tensor) -> Tensor:
    return values.clamp(-FP8_HIGHEST, FP8_HIGHEST).to(torch.float8_e4m3fn)


def _divided(blocks: Tensor, scales: Tensor, nearest: Callable[[Tensor], Tensor]) -> Tensor:
    """``blocks`` [.., n, block] rounded in units of their scales [.., n]; a scale of 0 makes a whole block 0."""
    return nearest(blocks / torch.where(scales > 0, scales, torch.inf).unsqueeze(-1)) * scales.unsqueeze(-1)


def _packed(nibbles: Tensor) -> Tensor:
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def _from_int4(tensors: Mapping[str, Tensor]) -> Tensor:
    return _scaled_blocks(unpack_int4(tensors["codes"]).float(), tensors["scales"].float())


def _from_int8(tensors: Mapping[str, Tensor]) -> Tensor:
    return tensors["codes"].view(torch.int8).float() * tensors["scales"][:, None]


def _from_fp8(tensors: Mapping[str, Tensor]) -> Tensor:
    return tensors["codes"].view(torch.float8_e4m3fn).float() * tensors["scales"]


def _from_fp4(tensors: Mapping[str, Tensor]) -> Tensor:
    packed = tensors["codes"]
    values = fp4_values(torch.stack([packed & 0x0F, packed >> 4], dim=-1).flatten(-2))
    scales = tensors["scales"].view(torch.float8_e4m3fn).float() * tensors["scales_global"]
    return _scaled_blocks(values, scales)


def _scaled_blocks(units: Tensor, scales: Tensor) -> Tensor:
    return (units.reshape(*scales.shape, -1) * scales.unsqueeze(-1)).flatten(1)


_DEQUANTIZERS: Final[Mapping[str, Callable[[Mapping[str, Tensor]], Tensor]]] = {
    "int4": _from_int4,
    "int8": _from_int8,
    "fp8": _from_fp8,
    "fp4": _from_fp4,
}
