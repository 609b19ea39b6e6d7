"""Strips: long periodic pictures, painted once per clip, that every frame looks at through a sliding window.

A layer of scenery does not change while the camera moves past it, so it is painted once on a strip that
is a few frames long and joins up with itself, and a frame costs one copy out of it per layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scripts.postcard.noise import RandomTable

PERIOD = 3
"""Length of a strip before it repeats, in frame heights."""

OVERSAMPLING = 2
"""Columns of a strip per pixel, so that slow movement is smooth to half a pixel."""

Colour = tuple[float, float, float] | Tensor


@dataclass
class Layer:
    """One layer of scenery while it is being painted, over the axes [B, channel, Y, X].

    `albedo` is lit by the time of day later, `glow` shines by itself at night, `cover` is the opacity. Both
    colours are premultiplied by the opacity, so that soft edges do not darken.
    `x` [X] and `y` [Y, 1] are positions in frame heights, `u` = x / PERIOD, `pixel` the size of a pixel.
    """

    table: RandomTable
    height: int
    albedo: Tensor = field(init=False)
    glow: Tensor = field(init=False)
    cover: Tensor = field(init=False)

    def __post_init__(self) -> None:
        values = self.table.values
        columns = PERIOD * self.height * OVERSAMPLING
        self.pixel = 1.0 / self.height
        self.u = (torch.arange(columns, device=values.device, dtype=values.dtype) + 0.5) / columns
        self.x = self.u * PERIOD
        self.y = ((torch.arange(self.height, device=values.device, dtype=values.dtype) + 0.5) / self.height)[:, None]
        shape = (values.shape[0], 3, self.height, columns)
        self.albedo, self.glow = values.new_zeros(shape), values.new_zeros(shape)
        self.cover = values.new_zeros(shape[0], 1, *shape[2:])

    def inside(self, distance: Tensor) -> Tensor:
        """Coverage in [0, 1] of what lies at a negative signed distance (frame heights), one pixel soft."""
        return (0.5 - distance / self.pixel).clamp(0, 1)

    def below(self, line: Tensor) -> Tensor:
        """Coverage [B, Y, X] of the ground under a skyline [B, X]."""
        return self.inside(line[:, None, :] - self.y)

    def paint(self, mask: Tensor, colour: Colour) -> None:
        """Cover the layer with a colour ((3,), [B, 3] or [B, 3, Y, X]) where `mask` [B, Y, X] says."""
        self.albedo = torch.lerp(self.albedo, self.field(colour), mask[:, None])
        self.cover = torch.lerp(self.cover, torch.ones_like(self.cover), mask[:, None])

    def shade(self, mask: Tensor, colour: Colour) -> None:
        """Change the colour where `mask` says, and leave the opacity alone."""
        self.albedo = torch.lerp(self.albedo, self.field(colour) * self.cover, mask[:, None])

    def crop(self, mask: Tensor) -> None:
        """Cut away everything outside `mask` [B or 1, Y, X]."""
        self.albedo, self.cover = self.albedo * mask[:, None], self.cover * mask[:, None]

    def shine(self, mask: Tensor, colour: Colour) -> None:
        """Let `mask` [B, Y, X] give off light of a colour at night."""
        self.glow = self.glow + mask[:, None] * self.field(colour)

    def field(self, colour: Colour) -> Tensor:
        """A colour as something that broadcasts over [B, 3, Y, X]."""
        value = colour if isinstance(colour, Tensor) else self.albedo.new_tensor(colour)[None]
        return value if value.ndim == 4 else value[:, :, None, None]


def translucent(colour: Tensor, cover: Tensor) -> Tensor:
    """The strip [B, 4, Y, X] that `lay` composites: premultiplied colour, then the share that shines through."""
    return torch.cat([colour, 1 - cover], dim=1)


def slide(strip: Tensor, column: Tensor, row: Tensor | None, height: int, width: int, step: tuple[int, int]) -> Tensor:
    """Windows [B, T, C, height, width] of a strip that joins up with itself.

    `strip` is [B, C, Y, X]; `row`, `column` int64 [B, T] are the samples at each window's corner (without
    `row`, the strip is as tall as the window) and `step` the samples (rows, columns) per pixel. Only the
    view's origin varies, so this is one copy.
    """
    clips, channels, rows, columns = strip.shape
    tall, wide = height * step[0], width * step[1]
    roomy = _extend(_extend(strip, 2, 0 if row is None else tall), 3, wide).contiguous()
    stride = roomy.stride()
    tops, lefts = roomy.shape[2] - tall + 1, roomy.shape[3] - wide + 1
    windows = roomy.as_strided(
        (clips, tops, lefts, channels, height, width),
        (stride[0], stride[2], stride[3], stride[1], stride[2] * step[0], stride[3] * step[1]),
    )
    clip = torch.arange(clips, device=strip.device)[:, None]
    top = torch.zeros_like(column) if row is None else row % rows
    return windows[clip, top, column % columns]


def lay(frames: Tensor, window: Tensor) -> None:
    """Composite a window [B, T, 4, H, W] of a premultiplied strip over `frames` [B, T, 3, H, W], in place."""
    frames.mul_(window[:, :, 3:]).add_(window[:, :, :3])


def _extend(strip: Tensor, axis: int, amount: int) -> Tensor:
    """The strip with its first `amount` samples along an axis repeated after its last."""
    if amount == 0:
        return strip
    index = torch.arange(strip.shape[axis] + amount, device=strip.device) % strip.shape[axis]
    return strip.index_select(axis, index)
