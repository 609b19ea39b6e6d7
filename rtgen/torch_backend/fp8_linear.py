"""A linear layer in FP8 (E4M3): one scale a matrix, one calibrated scale for the input, sums in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from rtgen.errors import PackageInvalidError
from rtgen.quantize.formats import FP8_HIGHEST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtgen.quantize.result import LayerResult

UNIT: Final = 16
"""Rows and columns of a matrix that tensor cores multiply in FP8 are multiples of it."""
CAPABILITY: Final = (8, 9)
"""The least compute capability with FP8 tensor cores."""


class Fp8Linear(nn.Module):
    """``y = x @ weight.T + bias`` for x [..., in] of the precision that the model computes in."""

    weight: Tensor
    """Empty; of use is its type only: the model asks for it."""
    codes: Tensor
    """[out, in] float8_e4m3fn."""
    scale: Tensor
    """float32 []; a weight is code * scale."""
    step: Tensor
    """[] of the precision; the input is rounded in units of it."""
    input_scale: Tensor
    """The same, float32."""

    bias: Tensor | None
    """[out]."""

    def __init__(self, parts: Mapping[str, Tensor], bias: Tensor | None, dtype: torch.dtype) -> None:
        """``parts``: the stored tensors by suffix (:class:`rtgen.quantize.result.LayerResult`)."""
        super().__init__()
        self.register_buffer("weight", torch.empty(0, dtype=dtype))
        self.register_buffer("codes", parts["codes"].view(torch.float8_e4m3fn))
        self.register_buffer("scale", parts["scales"])
        # As in the graphs: the step of activations is a number of the precision, and not below float16's least.
        step = parts["input_scale"].clamp_min(torch.finfo(torch.float16).tiny).to(dtype)
        self.register_buffer("step", step)
        self.register_buffer("input_scale", step.float())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out], in the type of x."""
        y = self.multiply(codes_of(x, self.step).flatten(0, -2), self.input_scale, x.dtype)
        return y.unflatten(0, x.shape[:-1])

    def multiply(self, codes: Tensor, step: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
        """Codes [T, in] in units of ``step`` (float32 []) to [T, out]."""
        fused = self.bias if dtype == torch.float16 else None  # float32 results have no fused bias
        y = torch._scaled_mm(
            codes,
            self.codes.t(),
            scale_a=step,
            scale_b=self.scale,
            bias=fused,
            out_dtype=dtype,
            use_fast_accum=True,
        )
        return y if self.bias is None or fused is not None else y + self.bias


def codes_of(x: Tensor, step: Tensor) -> Tensor:
    """Any tensor as FP8 in units of ``step``, saturating."""
    return (x / step).clamp(-FP8_HIGHEST, FP8_HIGHEST).to(torch.float8_e4m3fn)


def check_fp8(layer: LayerResult, shape: tuple[int, int]) -> None:
    """Refuse a layer that this module does not compute. Raises PackageInvalidError."""
    if layer.rank or layer.smoothed or layer.rotated:
        raise PackageInvalidError(f"{layer.name}: FP8 layers have no branch, no pre-scale and no rotation here")
    if any(side % UNIT for side in shape):
        raise PackageInvalidError(f"{layer.name} is {list(shape)}: FP8 products need multiples of {UNIT}")
