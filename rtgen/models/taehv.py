"""The tiny decoder TAEHV (``taew2_1`` for Wan 2.1's latents): plain 2-D convolutions that remember one frame.

Parameters carry the names of the published checkpoint (github.com/madebyollin/taehv), whose decoder is one numbered
sequence. Frames are folded into the batch inside, so that no convolution needs its input transposed.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (256, 128, 64, 64)
"""Channels of the published decoders: of the three levels, and before the last convolution."""
LATENT_LIMIT = 3.0


class FrameMemory:
    """The frame that each memory block saw last, consumed and refilled in execution order.

    Block number i takes ``past[i]`` [B, C, 1, H, W] (zeros at the start of a stream, or where ``past`` is None) and
    leaves its last frame in ``present[i]``.
    """

    def __init__(self, batch: int, past: Sequence[Tensor] | None) -> None:
        self.batch = batch
        self._past: Iterator[Tensor] | None = None if past is None else iter(past)
        self.present: list[Tensor] = []

    def before(self, x: Tensor) -> Tensor:
        """The frame before each frame of x [B * F, C, H, W], in its shape."""
        frames = x.unflatten(0, (self.batch, -1))
        earlier = torch.zeros_like(frames[:, :1]) if self._past is None else next(self._past).transpose(1, 2)
        self.present.append(frames[:, -1:].transpose(1, 2))
        return torch.cat([earlier, frames[:, :-1]], dim=1).flatten(0, 1)


class MemoryBlock(nn.Module):
    """Three convolutions over a frame and the one before it, and a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor, memory: FrameMemory) -> Tensor:
        return F.relu(self.conv(torch.cat([x, memory.before(x)], dim=1)) + x)


class Growth(nn.Module):
    """A 1x1 convolution that makes ``frames`` frames of each."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * frames, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])


class SoftLimit(nn.Module):
    """Keeps latents within +-3 smoothly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / LATENT_LIMIT) * LATENT_LIMIT


class TinyDecoder(nn.Module):
    """Latents as the denoiser makes them (normalised: no mean and deviation are applied) to pixels in 0..1."""

    temporal_stride: ClassVar[int] = 4
    frames_to_trim: ClassVar[int] = 3
    """The first frames of a stream do not exist: its first latent frame stands for one pixel frame, as in Wan."""

    def __init__(self, latent_channels: int = 16, widths: tuple[int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = [SoftLimit(), nn.Conv2d(latent_channels, widths[0], 3, padding=1), nn.ReLU()]
        for inside, outside, frames in zip(widths, widths[1:], (1, 2, 2), strict=False):
            layers += [MemoryBlock(inside), MemoryBlock(inside), MemoryBlock(inside)]
            layers += [nn.Upsample(scale_factor=2), Growth(inside, frames)]
            layers += [nn.Conv2d(inside, outside, 3, padding=1, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(widths[-1], 3, 3, padding=1))

    def forward(self, latents: Tensor, past: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Decode normalised latents [B, C, F, h, w] to pixels [B, 3, 4 * F, 8 * h, 8 * w] in 0..1.

        ``past``: states of the chunk before, None at the start of a stream; its first ``frames_to_trim`` frames must
        then be dropped. Returns the nine states for the next chunk too: [B, channels, 1, H, W] each.
        """
        batch = latents.shape[0]
        memory = FrameMemory(batch, past)
        x = latents.transpose(1, 2).flatten(0, 1).to(next(self.parameters()).dtype)
        for layer in self.decoder:
            x = layer(x, memory) if isinstance(layer, MemoryBlock) else layer(x)
        return x.clamp(0, 1).unflatten(0, (batch, -1)).transpose(1, 2), memory.present
