"""A convolution over 8-bit codes with its channels last, in the form that ONNX Runtime makes one integer kernel of.

In the graph it is DequantizeLinear, Conv, QuantizeLinear between two Transposes of codes: plain ONNX, which the graph
optimizer of ONNX Runtime replaces by an integer convolution with the channels last, and the Transposes vanish.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rtgen.export.codes import dequantize_bias, dequantize_linear, quantize_linear
from rtgen.export.ranges import Codes
from rtgen.models.causal_conv import CausalConv3d, FrameConv2d

WEIGHT_HIGHEST: Final = 63
"""Seven bits. Processors without VNNI add two products of an unsigned and a signed byte in 16 bits, and with eight bits
those sums could saturate; the frames of ``postcard`` lose 2 dB of 46 by it (docs/quantization.md#the-decoder)."""


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
        is_causal = isinstance(convolution, CausalConv3d)
        self.taps = convolution.kernel_size[0] if is_causal else 1
        self.padding = tuple(size // 2 for size in convolution.kernel_size[-2:])
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
        self, x: Tensor, weight: Tensor, past: Tensor | None, *, doubled: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Output codes [F, H, W, out] uint8 for x [F, H, W, C] float32, and the state for the next run.

        ``past`` [taps - 1, H, W, C] uint8 is that state: codes of past frames, exclusive or the code of zero, so that
        zeros stand for no past. None where there is one tap. ``doubled``: the input is x with twice the height and
        width, each place four times.
        """
        codes = quantize_linear(x, self.given_scale, self.given_zero)
        present = None
        if past is not None:
            frames, codes = codes.shape[0], torch.cat([past ^ self.given_zero, codes])
            present = codes[-(self.taps - 1) :] ^ self.given_zero
            codes = torch.cat([codes[tap : tap + frames] for tap in range(self.taps)], dim=-1)
        if doubled:
            codes = _doubled(codes)
        given = dequantize_linear(codes.permute(0, 3, 1, 2), self.given_scale, self.given_zero)
        bias = dequantize_bias(self.bias_codes, self.bias_scales)
        made = F.conv2d(given, self._weight(weight), bias, padding=self.padding)
        return quantize_linear(made, self.made_scale, self.made_zero).permute(0, 2, 3, 1), present

    def _weight(self, weight: Tensor) -> Tensor:
        """[out, taps * C, kernel height, kernel width], after its codes, which ONNX Runtime computes when it loads."""
        if self.taps > 1:
            weight = weight.transpose(1, 2).flatten(1, 2)
        codes = quantize_linear(weight, self.weight_scales, self.weight_zeros)
        rounded: Tensor = dequantize_linear(codes, self.weight_scales, self.weight_zeros)
        return rounded

    def numbers(self, codes: Tensor) -> Tensor:
        """What output codes stand for, float32."""
        numbers: Tensor = dequantize_linear(codes, self.made_scale, self.made_zero)
        return numbers


def _weight_scales(weight: Tensor) -> Tensor:
    """[out] float32: the greatest code stands for the greatest magnitude of an output channel."""
    amax = weight.detach().float().flatten(1).abs().amax(dim=1)
    return torch.where(amax > 0, amax / WEIGHT_HIGHEST, torch.ones_like(amax))


def _doubled(x: Tensor) -> Tensor:
    """x [F, H, W, C] with twice the height and width, each place four times."""
    frames, height, width, channels = x.shape
    wide = x[:, :, None, :, None].expand(frames, height, 2, width, 2, channels)
    return wide.reshape(frames, 2 * height, 2 * width, channels)
