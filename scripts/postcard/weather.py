"""What falls through the air: tiles of rain and snow that scroll, and banks of fog."""

from __future__ import annotations

import torch
from torch import Tensor

from scripts.postcard.noise import RandomTable, smoothstep
from scripts.postcard.strips import slide

_STEP = 2
"""Samples of a tile per pixel, along both axes."""

# Per depth: columns and rows of cells, length or radius, width, opacity, fall and slant in heights per second.
_RAIN = ((16, 7, 0.050, 0.0040, 0.38, 1.7, 0.35), (9, 4, 0.085, 0.0060, 0.55, 2.5, 0.55))
_SNOW = (
    (10, 10, 0.0080, 0.0, 0.45, 0.20, 0.03),
    (8, 7, 0.0110, 0.0, 0.62, 0.30, 0.05),
    (5, 4, 0.0150, 0.0, 0.78, 0.44, 0.08),
)


def _grid(table: RandomTable, height: int, columns: int, rows: int, stream: int) -> tuple[Tensor, Tensor, Tensor]:
    """A tile one height square cut in cells: key [Y, X], and offsets x, y [B, Y, X] in heights from a jittered spot."""
    like = table.values
    at = (torch.arange(height * _STEP, device=like.device, dtype=like.dtype) + 0.5) / (height * _STEP)
    ix, iy = (at * columns).floor(), (at * rows).floor()
    key = ix.long() + iy.long()[:, None] * columns
    x = at - (ix + 0.5) / columns - (table.at(key, stream) - 0.5) * 0.6 / columns
    y = (at - (iy + 0.5) / rows)[:, None] - (table.at(key, stream + 1) - 0.5) * 0.4 / rows
    return key, x, y


def rain_tile(table: RandomTable, height: int, depth: int) -> Tensor:
    """Opacity [B, 1, Y, X] of slanted streaks."""
    columns, rows, length, width, opacity, fall, slant = _RAIN[depth]
    key, x, y = _grid(table, height, columns, rows, 1000 + 10 * depth)
    across = (x + y * slant / fall).abs()
    along = (y.abs() - length / 2).clamp_min(0)
    streak = (1 - (across - width / 2).clamp_min(0) * height).clamp(0, 1) * smoothstep(0.01, 0.0, along)
    fade = smoothstep(-0.6, 0.5, y / length)
    return (streak * fade * opacity * (table.at(key, 1005 + depth) < 0.75))[:, None]


def snow_tile(table: RandomTable, height: int, depth: int) -> Tensor:
    """Opacity [B, 1, Y, X] of soft flakes."""
    columns, rows, radius, _, opacity, _, _ = _SNOW[depth]
    key, x, y = _grid(table, height, columns, rows, 1100 + 10 * depth)
    size = radius * (0.6 + 0.6 * table.at(key, 1105 + depth))
    distance = (x.square() + y.square()).sqrt()
    flake = ((size - distance) * height * 0.6 + 0.6).clamp(0, 1)
    return (flake * opacity * (table.at(key, 1108 + depth) < 0.85))[:, None]


def precipitation(frames: Tensor, table: RandomTable, times: Tensor, kind: str, side: str, light: Tensor) -> None:
    """Let rain or snow fall over `frames` [B, T, 3, H, W] in place; `times` [T] float64, `light` [B, 3].

    Only the nearest sheet falls before the subject (`side`), so that it never hides what the subject is.
    """
    height, width = frames.shape[-2:]
    specs, tile = (_RAIN, rain_tile) if kind == "rain" else (_SNOW, snow_tile)
    floor = 0.40 if kind == "rain" else 0.60
    colour = (floor + (1 - floor) * light)[:, None, :, None, None].to(frames.dtype)
    depths = range(len(specs) - 1) if side == "behind" else range(len(specs) - 1, len(specs))
    for depth in depths:
        *_, fall, slant = specs[depth]
        swing = 0.02 * torch.sin(times * 2.1 + depth * 2) if kind == "snow" else torch.zeros_like(times)
        samples = height * _STEP
        row = (-(times * fall) * samples).floor().long()
        column = ((times * slant + swing) * samples).floor().long()
        shape = (frames.shape[0], len(times))
        picture = tile(table, height, depth).to(frames.dtype)
        row, column = (v.to(frames.device).expand(shape) for v in (row, column))
        cover = slide(picture, column, row, height, width, (_STEP, _STEP))
        frames.lerp_(colour, cover)


def fog_strip(table: RandomTable, u: Tensor, y: Tensor) -> Tensor:
    """Density [B, 1, Y, X] of banks of fog, thickest over the ground; `u` [X], `y` [Y, 1]."""
    banks = table.fbm2(u, y[:, 0], 8, 6, 3, 1200)
    return (smoothstep(-0.35, 0.75, y) * (0.40 + 0.75 * banks) * 0.80).clamp(0, 0.64)[:, None]
