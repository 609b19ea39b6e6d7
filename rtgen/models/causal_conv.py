"""Causal 3-D convolution with explicit state, so that a stream decoded in chunks equals the whole clip at once."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StreamState:
    """The frames that causal convolutions remember, consumed and refilled in execution order.

    Convolution number i takes ``past[i]`` [B, C, history, H, W] (zeros at the start of a stream, or where ``past`` is
    None) and leaves its last frames in ``present[i]``.
    """

    def __init__(self, past: Sequence[Tensor] | None = None) -> None:
        self._past: Iterator[Tensor] | None = None if past is None else iter(past)
        self.present: list[Tensor] = []

    def extend(self, x: Tensor, history: int) -> Tensor:
        """x [B, C, F, H, W] with its ``history`` earlier frames in front."""
        if self._past is None:
            earlier = x.new_zeros(x.shape[0], x.shape[1], history, x.shape[3], x.shape[4])
        else:
            earlier = next(self._past)
        extended = torch.cat([earlier, x], dim=2)
        self.present.append(extended[:, :, -history:])
        return extended


class CausalConv3d(nn.Conv3d):
    """A stride-1 convolution that sees the present and earlier frames only, and is padded in space."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        """x [B, C, F, H, W]. ``state`` is needed where the kernel is longer than one frame."""
        history = self.kernel_size[0] - 1
        if history:
            assert state is not None, "a temporal kernel needs a stream state"
            x = state.extend(x, history)
        return super().forward(x)


class FrameConv2d(nn.Conv2d):
    """A 2-D convolution applied to each frame of [B, C, F, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[2]
        y = super().forward(x.transpose(1, 2).flatten(0, 1))
        return y.unflatten(0, (-1, frames)).transpose(1, 2)


def upsample_nearest(x: Tensor) -> Tensor:
    """Double height and width of each frame of [B, C, F, H, W]."""
    frames = x.shape[2]
    y = F.interpolate(x.transpose(1, 2).flatten(0, 1), scale_factor=2.0, mode="nearest")
    return y.unflatten(0, (-1, frames)).transpose(1, 2)
