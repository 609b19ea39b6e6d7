"""Water: a rippled mirror of what stands above it, with glints under the sun."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scripts.postcard.noise import smoothstep
from scripts.postcard.scenes import HORIZON

# Colour of the water itself and how much of it hides the mirror image, near and far.
_WATERS: dict[str, tuple[tuple[float, float, float], float, float]] = {
    "beach": ((0.06, 0.48, 0.62), 0.75, 0.40),
    "island": ((0.04, 0.50, 0.66), 0.75, 0.40),
    "lake": ((0.10, 0.26, 0.36), 0.35, 0.08),
}
_SEA_CHOP = {"beach": 1.0, "island": 1.0, "lake": 0.35}


def flood(
    frames: Tensor, place: str, times: Tensor, camera: Tensor, sun_x: Tensor, ambient: Tensor, shine: Tensor
) -> None:
    """Fill `frames` [B, T, 3, H, W] below the horizon with water, in place.

    `times` [T] and `camera` [B, T] are float64, `sun_x` [B, 1, 1] in heights, `ambient` and `shine` [B, 3].
    """
    height, width = frames.shape[-2:]
    top = round(HORIZON * height)
    like = frames[:0]
    depth = ((torch.arange(height - top, device=like.device, dtype=torch.float32) + 0.5) / height)[:, None]
    near = depth / (1 - HORIZON)
    # Angles wrap in float64 before they lose their precision in the frame's own type.
    clock = _wrap(times * 2.0)[:, None, None].to(like.device, torch.float32)
    clock2 = _wrap(times * 1.3)[:, None, None].to(like.device, torch.float32)
    water = _mirror(frames, top, near, clock, _SEA_CHOP[place])
    colour, far_hide, near_hide = _WATERS[place]
    own = (ambient * ambient.new_tensor(colour))[:, None, :, None, None].to(like.dtype)
    hide = near_hide + (far_hide - near_hide) * near
    water = water.lerp_(own, hide.to(like.dtype))
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) / height
    moved = (camera % 60.0).to(like.device, torch.float32)[:, :, None, None]
    scroll = x + moved * (0.25 + 0.55 * near)
    zoom = 1 / (0.25 + near)
    rows = torch.sqrt(depth) * 90
    ripple = torch.sin(scroll * zoom * 9 + rows * 1.7 + clock) * torch.sin(scroll * zoom * -14 + rows * 2.9 + clock2)
    ripple = ripple.to(like.dtype)
    glitter = torch.exp(-((x - sun_x) / (0.06 + 0.22 * near)).square())[:, None].to(like.dtype)
    crest = smoothstep(0.25, 0.85, ripple) * (glitter * 0.75 + 0.10 + 0.12 * _SEA_CHOP[place])
    frames[:, :, :, top:] = water.lerp_(shine[:, None, :, None, None].to(like.dtype), crest[:, :, None])


def _wrap(angle: Tensor) -> Tensor:
    return angle % (2 * math.pi)


def _mirror(frames: Tensor, top: int, near: Tensor, clock: Tensor, chop: float) -> Tensor:
    """The picture above row `top` upside down [B, T, 3, H - top, W], each row shaken sideways by the waves."""
    height, width = frames.shape[-2:]
    rows = (2 * top - 1 - torch.arange(top, height, device=frames.device)).clamp_min(0)
    shake = torch.sin(near * 40 - clock * 2) * (0.5 + 2.5 * near) * chop * (height / 128) * 1.4
    column = (torch.arange(width, device=frames.device) + shake.round().long()).clamp(0, width - 1)
    index = rows[:, None] * width + column
    clips, count = frames.shape[:2]
    flat = frames.flatten(3)
    picked = torch.gather(flat, 3, index.flatten(1)[None, :, None].expand(clips, count, 3, -1))
    return picked.unflatten(3, (height - top, width))
