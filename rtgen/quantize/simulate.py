"""A quantized linear layer computed in torch from what the weight file holds.

Products are those of float32 numbers that the number formats can represent: what a GPU's tensor cores compute, but for
the order of sums. For FP8 and FP4, which ONNX Runtime's processor kernels lack or do slowly, it stands in for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch.nn import functional as F

from rtgen.plugins.w4a4_linear import quantize_groups, rotate_groups
from rtgen.quantize.formats import dequantize, round_at_run_time, round_fp4, round_fp8, round_int8

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from rtgen.quantize.result import LayerResult


def rounded_input(x: Tensor, layer: LayerResult, scale: Tensor | None) -> Tensor:
    """What the matrix product of a layer is given for ``x`` [n, in] float32, which already carries the pre-scale.

    ``scale`` is the layer's ``input_scale``; INT8 without one is scaled at run time, by the range of the whole input.
    """
    if layer.activations == "int4":
        codes, scales = quantize_groups(rotate_groups(x) if layer.rotated else x)
        return (codes * scales).flatten(-2)
    if layer.activations is None:
        return x
    if layer.activations == "int8":
        return round_at_run_time(x) if scale is None else round_int8(x, scale)
    assert scale is not None  # the weight file has one for these formats
    return round_fp8(x, scale) if layer.activations == "fp8" else round_fp4(x, scale)


class SimulatedLinear:
    """``y = layer(x)`` for x [..., in] of any floating type, with the layer's own bias."""

    def __init__(self, layer: LayerResult, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        """``tensors``: those of the weight file by suffix (:class:`rtgen.quantize.result.LayerResult`)."""
        self.layer, self._tensors = layer, tensors
        bias = tensors.get("bias", bias)
        self._bias = None if bias is None else bias.float()
        self._weight = dequantize(layer.weights, tensors)

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).float()
        if self.layer.smoothed:
            flat = flat * self._tensors["pre_scale"].float()
        if "shift" in self._tensors:
            flat = flat - self._tensors["shift"].float()
        rounded = rounded_input(flat, self.layer, self._tensors.get("input_scale"))
        y = F.linear(rounded, self._weight, self._bias)
        if self.layer.rank:
            hidden = F.linear(flat, self._tensors["low_rank_down"].float())
            y = y + F.linear(hidden, self._tensors["low_rank_up"].float())
        return y.reshape(*x.shape[:-1], -1).to(x.dtype)

    def replace(self, module: nn.Linear) -> RemovableHandle:
        """Let ``module`` return what this layer makes of its input, until the handle is removed."""
        return module.register_forward_hook(lambda _, arguments, __: self(arguments[0]))
