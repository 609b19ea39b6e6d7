"""Periodic value noise from a table of random numbers, and the small functions shaders are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TABLE_SIZE = 8192
"""Random numbers per clip; streams are spread over the table and may overlap harmlessly."""


def smoothstep(low: float, high: float, value: Tensor) -> Tensor:
    """0 below `low`, 1 above `high`, a cubic between; `low` above `high` falls instead of rising."""
    u = ((value - low) / (high - low)).clamp(0, 1)
    return u * u * (3 - 2 * u)


@dataclass(frozen=True)
class RandomTable:
    """Uniform random numbers of a batch: `values` is float [B, TABLE_SIZE] in [0, 1)."""

    values: Tensor

    def at(self, index: Tensor, stream: int) -> Tensor:
        """Numbers [B, *index.shape] of a stream, one per distinct index."""
        return self.values[:, (index + stream * 331) % TABLE_SIZE]

    def scalar(self, stream: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """One number [B, 1, 1] per clip between two bounds."""
        column = (stream * 331 + 7) % TABLE_SIZE
        return low + (high - low) * self.values[:, column, None, None]

    def noise1(self, u: Tensor, cells: int, stream: int, *, sharp: bool = False) -> Tensor:
        """Value noise [B, X] in [0, 1] over `u` [X], of period 1; `sharp` joins its nodes by straight lines."""
        scaled = u * cells
        cell = scaled.floor()
        part = scaled - cell
        weight = part if sharp else part * part * (3 - 2 * part)
        index = cell.long()
        return torch.lerp(self.at(index % cells, stream), self.at((index + 1) % cells, stream), weight)

    def fbm1(self, u: Tensor, cells: int, octaves: int, stream: int, *, sharp: bool = False) -> Tensor:
        """A sum of octaves of `noise1`, scaled back to [0, 1]."""
        total = self.noise1(u, cells, stream, sharp=sharp)
        for octave in range(1, octaves):
            finer = self.noise1(u, cells << octave, stream + octave, sharp=sharp)
            total = total + finer * 0.5**octave
        return total / (2 - 0.5 ** (octaves - 1))

    def noise2(self, u: Tensor, v: Tensor, columns: int, rows: int, stream: int) -> Tensor:
        """Value noise [B, Y, X] over `u` [X] (period 1) and `v` [Y] (period 1)."""
        x, y = u * columns, v * rows
        ix, iy = x.floor(), y.floor()
        fx, fy = x - ix, (y - iy)[:, None]
        fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
        left, right = ix.long() % columns, (ix.long() + 1) % columns
        upper, lower = (iy.long() % rows)[:, None] * columns, ((iy.long() + 1) % rows)[:, None] * columns
        above = torch.lerp(self.at(upper + left, stream), self.at(upper + right, stream), fx)
        below = torch.lerp(self.at(lower + left, stream), self.at(lower + right, stream), fx)
        return torch.lerp(above, below, fy)

    def fbm2(self, u: Tensor, v: Tensor, columns: int, rows: int, octaves: int, stream: int) -> Tensor:
        """A sum of octaves of `noise2`, scaled back to [0, 1]."""
        total = self.noise2(u, v, columns, rows, stream)
        for octave in range(1, octaves):
            total = total + self.noise2(u, v, columns << octave, rows << octave, stream + octave) * 0.5**octave
        return total / (2 - 0.5 ** (octaves - 1))
