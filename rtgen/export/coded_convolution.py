"""A convolution over 8-bit codes with its channels last, in the form that ONNX Runtime makes one integer kernel of.

In the graph it is DequantizeLinear, Conv, QuantizeLinear between two Transposes of codes: plain ONNX, which the graph
optimizer of ONNX Runtime replaces by an integer convolution with the channels last, and the Transposes vanish. To torch
it is one op, since the exporter's time grows with their number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rtgen.export.codes import dequantize_linear, quantize_linear
from rtgen.export.ranges import Codes
from rtgen.models.causal_conv import CausalConv3d, FrameConv2d

WEIGHT_HIGHEST: Final = 63
"""Seven bits. Processors without VNNI add two products of an unsigned and a signed byte in 16 bits, and with eight bits
those sums could saturate (docs/quantization.md#the-decoder)."""

_END: Final = 2**63 - 1
"""Of a slice."""


class CodedConvolution(nn.Module):
    """A convolution's scales, and its arithmetic; weights are given, so that they keep their names.

    A convolution over time sees its frames side by side, as more channels of one frame (*taps*, the oldest first): as
    one over two dimensions it is up to 1.7 times as fast in ONNX Runtime.
    """

    given_scale: Tensor
    given_zero: Tensor
    weight_scales: Tensor
    weight_zeros: Tensor
    bias_codes: Tensor
    bias_scales: Tensor
    made_scale: Tensor
    made_zero: Tensor

    def __init__(self, convolution: CausalConv3d | FrameConv2d, given: Codes, made: Codes, offset: float = 0.0) -> None:
        """``given`` and ``made``: codes of input and output; ``offset`` is added to the output."""
        super().__init__()
        self.taps = _taps(convolution.weight.shape)
        scales = _weight_scales(convolution.weight)
        assert convolution.bias is not None
        bias = (convolution.bias.detach().double() + offset) / (scales.double() * given.scale)
        buffers = {
            "given_scale": torch.tensor(given.scale),
            "given_zero": torch.tensor(given.zero, dtype=torch.uint8),
            "weight_scales": scales,
            "weight_zeros": torch.zeros(len(scales), dtype=torch.int8),
            "bias_codes": bias.round().clamp(-(2**31), 2**31 - 1).to(torch.int32),
            "bias_scales": scales * given.scale,
            "made_scale": torch.tensor(made.scale),
            "made_zero": torch.tensor(made.zero, dtype=torch.uint8),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def forward(
        self, x: Tensor, weight: Tensor, past: Tensor | None, *, doubled: bool = False, numbers: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The output [F, H, W, out] for x [F, H, W, C] float32, and the state for the next run.

        ``past`` [taps - 1, H, W, C] uint8 is that state: codes of past frames, exclusive or the code of zero, so that
        zeros stand for no past. None where there is one tap; then no state comes out either, but a tensor of no frames.
        ``doubled``: the input is x with twice the height and width, each place four times. ``numbers``: the output is
        float32, else it is uint8 codes.
        """
        constants = (
            *(self.given_scale, self.given_zero, self.weight_scales, self.weight_zeros),
            *(self.bias_codes, self.bias_scales, self.made_scale, self.made_zero),
        )
        made: tuple[Tensor, Tensor] = coded_convolution(x, past, weight, *constants, doubled, numbers)
        return made


@torch.library.custom_op("rtgen::coded_convolution", mutates_args=())
def coded_convolution(
    x: Tensor,
    past: Tensor | None,
    weight: Tensor,
    given_scale: Tensor,
    given_zero: Tensor,
    weight_scales: Tensor,
    weight_zeros: Tensor,
    bias_codes: Tensor,
    bias_scales: Tensor,
    made_scale: Tensor,
    made_zero: Tensor,
    doubled: bool,
    numbers: bool,
) -> tuple[Tensor, Tensor]:
    """:meth:`CodedConvolution.forward`. Codes of the bias are int32, of weights int8, with a scale for each output."""
    taps, frames = _taps(weight.shape), x.shape[0]
    codes = quantize_linear(x, given_scale, given_zero)
    present = codes.new_empty(0, *x.shape[1:])
    if past is not None:
        codes = torch.cat([past ^ given_zero, codes])
        present = codes[-(taps - 1) :] ^ given_zero
        codes = torch.cat([codes[tap : tap + frames] for tap in range(taps)], dim=-1)
    if doubled:
        codes = codes.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    matrix = weight if weight.dim() == 4 else weight.transpose(1, 2).flatten(1, 2)
    matrix = dequantize_linear(quantize_linear(matrix, weight_scales, weight_zeros), weight_scales, weight_zeros)
    given = dequantize_linear(codes, given_scale, given_zero).permute(0, 3, 1, 2)
    padding = [size // 2 for size in matrix.shape[2:]]
    made = quantize_linear(F.conv2d(given, matrix, bias_codes * bias_scales, padding=padding), made_scale, made_zero)
    made = made.permute(0, 2, 3, 1).contiguous()
    return (dequantize_linear(made, made_scale, made_zero) if numbers else made), present


@coded_convolution.register_fake
def _(x: Tensor, past: Tensor | None, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, doubled, numbers = rest
    frames, height, width, channels = x.shape
    times = 2 if doubled else 1
    kept = 0 if past is None else past.shape[0]
    made = x.new_empty(
        (frames, times * height, times * width, weight.shape[0]), dtype=torch.float32 if numbers else torch.uint8
    )
    return made, x.new_empty((kept, height, width, channels), dtype=torch.uint8)


@cache
def translations() -> dict[Any, Callable[..., Any]]:
    """What the exporter writes for the op."""
    return {torch.ops.rtgen.coded_convolution.default: _nodes}


def _nodes(
    x: Any,
    past: Any,
    weight: Any,
    given_scale: Any,
    given_zero: Any,
    weight_scales: Any,
    weight_zeros: Any,
    bias_codes: Any,
    bias_scales: Any,
    made_scale: Any,
    made_zero: Any,
    doubled: bool,
    numbers: bool,
) -> tuple[Any, Any]:
    """The nodes of :func:`coded_convolution`. ONNX Runtime rounds the weights once, when it loads the graph."""
    from onnxscript import opset18 as ops  # what the exporter's own translations are written in

    def integers(*values: int) -> Any:
        return ops.Constant(value_ints=list(values))

    def frames(codes: Any, first: int, end: int) -> Any:
        return ops.Slice(codes, integers(first), integers(end), integers(0))

    taps = _taps(weight.shape)
    codes = present = ops.QuantizeLinear(x, given_scale, given_zero)
    if past is not None:
        codes = ops.Concat(ops.BitwiseXor(past, given_zero), codes, axis=0)
        present = ops.BitwiseXor(frames(codes, 1 - taps, _END), given_zero)
        codes = ops.Concat(*(frames(codes, tap, tap + 1 - taps or _END) for tap in range(taps)), axis=3)
    if doubled:
        wide = ops.Expand(ops.Unsqueeze(codes, integers(2, 4)), integers(1, 1, 2, 1, 2, 1))
        codes = ops.Reshape(wide, ops.Mul(ops.Shape(codes), integers(1, 2, 2, 1)))
    matrix = weight
    if len(weight.shape) == 5:
        outputs, channels, _, *kernel = map(int, weight.shape)
        turned = ops.Transpose(weight, perm=[0, 2, 1, 3, 4])
        matrix = ops.Reshape(turned, integers(outputs, taps * channels, *kernel))
    rounded = ops.QuantizeLinear(matrix, weight_scales, weight_zeros, axis=0)
    kernel = list(map(int, weight.shape[-2:]))
    made = ops.Conv(
        ops.DequantizeLinear(ops.Transpose(codes, perm=[0, 3, 1, 2]), given_scale, given_zero),
        ops.DequantizeLinear(rounded, weight_scales, weight_zeros, axis=0),
        ops.DequantizeLinear(bias_codes, bias_scales, axis=0),  # with a zero ONNX Runtime would not know the pattern
        kernel_shape=kernel,
        pads=[size // 2 for size in kernel] * 2,
    )
    made = ops.Transpose(ops.QuantizeLinear(made, made_scale, made_zero), perm=[0, 2, 3, 1])
    return (ops.DequantizeLinear(made, made_scale, made_zero) if numbers else made), present


def _taps(shape: Any) -> int:
    """Frames that a kernel with a weight of this shape sees."""
    return int(shape[2]) if len(shape) == 5 else 1


def _weight_scales(weight: Tensor) -> Tensor:
    """[out] float32: the greatest code stands for the greatest magnitude of an output channel."""
    amax = weight.detach().float().flatten(1).abs().amax(dim=1)
    return torch.where(amax > 0, amax / WEIGHT_HIGHEST, torch.ones_like(amax))
