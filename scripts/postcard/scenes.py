"""The places: three layers of scenery each (far, middle, near), painted on strips."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scripts.postcard.noise import smoothstep
from scripts.postcard.strips import PERIOD, Colour, Layer

HORIZON = 0.62
"""Height of the water line, in frame heights from the top."""

WATER_AFTER: dict[str, int] = {"beach": 0, "island": 0, "lake": 1}
"""Places with water, and the last layer that lies behind it (0 far, 1 middle)."""

Painter = Callable[[Layer, Layer, Layer], None]


def _cells(layer: Layer, count: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cut the strip into equal cells: index [X] and position [X] in heights from the cell's middle."""
    scaled = layer.u * count + shift
    index = scaled.floor()
    return index.long() % count, (scaled - index - 0.5) * (PERIOD / count)


def _ground(layer: Layer, line: Tensor, top: Colour, bottom: Colour, depth: float = 0.35) -> None:
    """Fill below a skyline [B, X], from one colour at the edge to another `depth` heights further down."""
    below = smoothstep(0, depth, layer.y - line[:, None, :])
    layer.paint(layer.below(line), torch.lerp(layer.field(top), layer.field(bottom), below[:, None]))


def _slope(line: Tensor, layer: Layer) -> Tensor:
    """Steepness [B, 1, X] of a skyline; positive where it falls to the right (y grows downwards)."""
    return ((line.roll(-1, 1) - line.roll(1, 1)) * line.shape[1] / (2 * PERIOD))[:, None, :]


def _peaks(layer: Layer, top: float, relief: float, cells: int, stream: int, rock: Colour, snow: float) -> None:
    """Pointed mountains, one per cell, with a lit and a shaded flank and snow down to a ragged line."""
    table = layer.table
    line, side = torch.full_like(table.noise1(layer.u, 2, stream), 2.0), torch.zeros_like(layer.x)[None]
    for shift in (-1, 0, 1):
        index, x = _cells(layer, cells)
        index, x = (index + shift) % cells, x - shift * (PERIOD / cells)
        x = x + (table.at(index, stream) - 0.5) * 0.6 * PERIOD / cells
        peak = top + relief * table.at(index, stream + 1)
        flank = peak + x.abs() * (0.75 + 0.5 * table.at(index, stream + 2))
        side = torch.where(flank < line, x, side)
        line = torch.minimum(line, flank)
    jag = table.fbm1(layer.u, cells * 8, 3, stream + 3, sharp=True) - 0.5
    line = line + 0.05 * jag
    layer.paint(layer.below(line), rock)
    # The edge between light and shade zigzags down from the summit.
    depth = layer.y - line[:, None, :]
    rough = table.fbm2(layer.u, layer.y[:, 0], cells * 6, 12, 2, stream + 20) - 0.5
    light = smoothstep(-0.012, 0.012, side[:, None, :] + 0.10 * rough)
    layer.shade((1 - light) * 0.42, (0.10, 0.11, 0.22))
    reach = snow * (1.5 - (line - top)[:, None, :] / relief) + 0.10 * rough
    cap = layer.inside(depth - reach.clamp_min(0)) * layer.below(line)
    layer.shade(cap, torch.lerp(layer.field((0.66, 0.72, 0.88)), layer.field((1.0, 1.0, 1.0)), light[:, None]))


def _conifers(
    layer: Layer, base: float, tall: float, count: int, stream: int, colour: Colour, chance: float = 1
) -> None:
    """Two staggered rows of fir trees standing on height `base`."""
    for row in range(2):
        index, x = _cells(layer, count, row * 0.5)
        size = layer.table.at(index, stream + row)
        size = tall * (0.65 + 0.5 * size) * (layer.table.at(index, stream + 2 + row) < chance)
        x = x + (layer.table.at(index, stream + 4 + row) - 0.5) * (PERIOD / count) * 0.4
        size, x = size[:, None, :], x[:, None, :]
        v = (layer.y - (base - size)) / (size + 1e-4)
        tier = v * 4
        half = size * (0.10 * v + 0.13 * (tier - tier.floor()) * (0.35 + 0.65 * v)) + 0.1 * layer.pixel
        mask = layer.inside(x.abs() - half) * layer.inside(base - size - layer.y) * layer.inside(layer.y - base - 0.01)
        tone = layer.table.at(index, stream + 6 + row)[:, None, None, :]
        light = 1.0 + 0.35 * (tone - 0.5) + 0.25 * smoothstep(0.02, -0.02, x)[:, None]
        layer.paint(mask, layer.field(colour) * light)


def _mountains(far: Layer, mid: Layer, near: Layer) -> None:
    _peaks(far, 0.24, 0.18, 7, 1, (0.40, 0.43, 0.56), 0.11)
    _peaks(mid, 0.47, 0.16, 9, 40, (0.40, 0.38, 0.40), 0.055)
    line = 0.80 + 0.07 * near.table.fbm1(near.u, 6, 2, 70)
    _conifers(near, 0.86, 0.17, 26, 80, (0.10, 0.24, 0.17), 0.8)
    _ground(near, line, (0.25, 0.36, 0.20), (0.13, 0.22, 0.13))


def _desert(far: Layer, mid: Layer, near: Layer) -> None:
    plateau = smoothstep(0.52, 0.60, far.table.fbm1(far.u, 9, 2, 1)) * (0.7 + 0.3 * far.table.noise1(far.u, 9, 5))
    line = 0.64 - 0.22 * plateau
    _ground(far, line, (0.80, 0.42, 0.28), (0.62, 0.30, 0.24))
    bands = torch.sin(far.y * 130 + far.table.noise1(far.u, 12, 9)[:, None, :] * 3)
    far.shade(0.25 * smoothstep(0.0, 0.6, bands), (0.95, 0.62, 0.42))
    for layer, base, relief, cells, stream in ((mid, 0.60, 0.14, 5, 20), (near, 0.76, 0.16, 4, 30)):
        line = base + relief * (1 - layer.table.fbm1(layer.u, cells, 2, stream))
        _ground(layer, line, (0.98, 0.80, 0.50), (0.88, 0.60, 0.32), 0.25)
        lee = smoothstep(-0.06, 0.10, _slope(line, layer)) * smoothstep(0.22, 0.0, layer.y - line[:, None, :])
        layer.shade(0.5 * lee, (0.62, 0.36, 0.22))
        ripples = torch.sin((layer.y - line[:, None, :] * 0.5) * 160)
        layer.shade(0.12 * smoothstep(0.2, 0.9, ripples), (1.0, 0.9, 0.65))
    _cacti(near, 60)


def _cacti(layer: Layer, stream: int) -> None:
    """Saguaros: a trunk with two bent arms."""
    index, x = _cells(layer, 6)
    pick = layer.table.at(index, stream)
    x = (x + (pick - 0.5) * 0.2)[:, None, :]
    side = torch.where(layer.table.at(index, stream + 1) < 0.5, -1.0, 1.0)[:, None, :]
    x = x * side
    y = layer.y - 0.92
    size = (0.16 + 0.10 * pick)[:, None, :]
    trunk = _capsule(x, y, 0.0, 0.0, -size, 0.020)
    arm = torch.minimum(
        _capsule(x - 0.055, y, 0.0, -0.55 * size, -0.85 * size, 0.013), _bar(x, y + 0.55 * size, 0, 0.055, 0.013)
    )
    other = torch.minimum(
        _capsule(x + 0.05, y, 0.0, -0.4 * size, -0.65 * size, 0.012), _bar(x, y + 0.4 * size, -0.05, 0, 0.012)
    )
    mask = layer.inside(torch.minimum(torch.minimum(trunk, arm), other))
    mask = mask * (layer.table.at(index, stream + 2) < 0.9)[:, None, :]
    layer.paint(
        mask,
        torch.lerp(
            layer.field((0.16, 0.36, 0.20)), layer.field((0.34, 0.56, 0.28)), smoothstep(0.02, -0.02, x)[:, None]
        ),
    )


def _capsule(x: Tensor, y: Tensor, at: float, low: Tensor | float, high: Tensor | float, radius: float) -> Tensor:
    """Distance to an upright rounded bar between two heights (`high` above, so smaller)."""
    zero = torch.zeros_like(y)
    dy = torch.maximum(torch.maximum(y - low, high - y), zero)
    return ((x - at).square() + dy.square()).sqrt() - radius


def _bar(x: Tensor, y: Tensor, left: float, right: float, radius: float) -> Tensor:
    """Distance to a level rounded bar."""
    dx = torch.maximum(torch.maximum(left - x, x - right), torch.zeros_like(x))
    return (dx.square() + y.square()).sqrt() - radius


def _towers(
    layer: Layer, count: int, top: float, relief: float, stream: int, walls: tuple[Colour, Colour], lit: float
) -> None:
    """A row of buildings with a grid of windows, some of them lit at night."""
    table, pitch = layer.table, 0.042
    index, x = _cells(layer, count)
    half = (PERIOD / count) * (0.40 + 0.10 * table.at(index, stream))
    roof = top + relief * (1 - table.at(index, stream + 1))
    # A third of the roofs step in, and some carry a mast.
    step = (table.at(index, stream + 2) < 0.35) * (x.abs() < half * 0.55) * 0.05
    mast = (table.at(index, stream + 3) < 0.3) * (x.abs() < 0.006) * 0.08
    line = torch.where(x.abs() < half, roof - torch.maximum(step, mast), 1.1)
    tone = table.at(index, stream + 4)[:, None, None, :]
    layer.paint(layer.below(line), torch.lerp(layer.field(walls[0]), layer.field(walls[1]), tone))
    layer.shade(0.22 * smoothstep(-0.01, 0.03, x).expand_as(layer.below(line)), (0.05, 0.05, 0.12))
    column, level = (x / pitch + 50).floor(), (layer.y / pitch).floor()
    pane = ((x / pitch + 50 - column - 0.5).abs() < 0.27) & ((layer.y / pitch - level - 0.5).abs() < 0.30)
    inner = (x.abs() < half - 0.014)[:, None, :] & (layer.y > roof[:, None, :] + 0.02)
    key = (column.long() + index * 13)[None, :] + level.long() * 577
    chosen = table.at(key, stream + 5)
    window = (pane & inner).to(layer.albedo.dtype)
    layer.shade(window * 0.75, (0.36, 0.46, 0.60))
    warm = torch.lerp(
        layer.field((1.0, 0.78, 0.35)), layer.field((1.0, 0.92, 0.70)), table.at(key, stream + 6)[:, None]
    )
    layer.shine(window * (chosen < lit), warm)


def _city(far: Layer, mid: Layer, near: Layer) -> None:
    far.paint(far.below(torch.full_like(far.table.noise1(far.u, 4, 60), 0.68)), (0.46, 0.48, 0.58))
    _towers(far, 22, 0.34, 0.26, 1, ((0.52, 0.58, 0.70), (0.62, 0.62, 0.72)), 0.35)
    _towers(mid, 15, 0.46, 0.26, 20, ((0.46, 0.40, 0.42), (0.62, 0.54, 0.50)), 0.5)
    _towers(near, 12, 0.70, 0.16, 40, ((0.42, 0.26, 0.24), (0.36, 0.38, 0.46)), 0.5)
    street = torch.full_like(near.table.noise1(near.u, 4, 60), 0.93)
    _ground(near, street, (0.28, 0.28, 0.32), (0.20, 0.20, 0.24))
    _, x = _cells(near, 15)
    post = torch.minimum(_capsule(x, near.y, 0.0, 0.96, 0.82, 0.005), _bar(x - 0.02, near.y - 0.82, -0.02, 0.02, 0.006))
    near.paint(near.inside(post)[None].expand(near.cover.shape[0], -1, -1), (0.14, 0.14, 0.18))
    lamp = ((x - 0.04).square() + (near.y - 0.83).square()).sqrt()[None].expand(near.cover.shape[0], -1, -1)
    near.paint(near.inside(lamp - 0.010), (0.95, 0.92, 0.80))
    near.shine(torch.exp(-(lamp / 0.03).square()) * near.cover[:, 0] * 0.8, (1.0, 0.8, 0.45))


def _forest(far: Layer, mid: Layer, near: Layer) -> None:
    for layer, base, tall, count, stream, colour in (
        (far, 0.66, 0.24, 34, 1, (0.30, 0.50, 0.42)),
        (mid, 0.82, 0.32, 24, 20, (0.16, 0.38, 0.26)),
        (near, 0.99, 0.36, 16, 40, (0.08, 0.25, 0.14)),
    ):
        ground = base - 0.03 + 0.03 * layer.table.fbm1(layer.u, 8, 2, stream + 12)
        _ground(layer, ground - 0.02, colour, (0.10, 0.20, 0.12))
        _conifers(layer, base, tall, count, stream, colour)


def _meadow(far: Layer, mid: Layer, near: Layer) -> None:
    _ground(far, 0.56 + 0.12 * (1 - far.table.fbm1(far.u, 5, 2, 1)), (0.50, 0.70, 0.52), (0.42, 0.62, 0.42))
    line = 0.64 + 0.11 * (1 - mid.table.fbm1(mid.u, 4, 2, 20))
    _bushes(mid, line, 18, 24)
    _ground(mid, line, (0.56, 0.80, 0.32), (0.36, 0.62, 0.24))
    line = 0.74 + 0.08 * (1 - near.table.fbm1(near.u, 3, 2, 40))
    blades = line - 0.012 * near.table.noise1(near.u, 300, 44)
    _ground(near, blades, (0.50, 0.78, 0.26), (0.20, 0.48, 0.16))
    for row in range(6):
        _flowers(near, line, 0.03 + 0.045 * row, 34 - 3 * row, 0.009 + 0.0025 * row, 50 + 5 * row)


def _bushes(layer: Layer, line: Tensor, count: int, stream: int) -> None:
    """Round trees along a skyline [B, X]."""
    index, x = _cells(layer, count)
    radius = (0.022 + 0.03 * layer.table.at(index, stream))[:, None, :]
    x = x[None, None, :] + (layer.table.at(index, stream + 1)[:, None, :] - 0.5) * 0.06
    distance = (x.square() + (layer.y - line[:, None, :] + radius * 0.8).square()).sqrt() - radius
    mask = layer.inside(distance) * (layer.table.at(index, stream + 2) < 0.55)[:, None, :]
    light = smoothstep(0.03, -0.04, x + layer.y - line[:, None, :] + radius)
    layer.paint(mask, torch.lerp(layer.field((0.16, 0.40, 0.20)), layer.field((0.38, 0.64, 0.28)), light[:, None]))


def _flowers(layer: Layer, line: Tensor, drop: float, count: int, radius: float, stream: int) -> None:
    """A row of flower heads `drop` below a skyline, each of a colour of its own."""
    index, x = _cells(layer, count, drop * 7)
    x = (x + (layer.table.at(index, stream) - 0.5) * 0.5 * PERIOD / count)[:, None, :]
    y = layer.y - line[:, None, :] - drop - 0.03 * layer.table.at(index, stream + 1)[:, None, :]
    petals = layer.inside((x.square() + y.square()).sqrt() - radius)
    palette = layer.albedo.new_tensor(
        [(1.0, 1.0, 1.0), (1.0, 0.85, 0.2), (0.98, 0.5, 0.65), (0.75, 0.55, 0.95), (0.95, 0.3, 0.25)]
    )
    colour = palette[(layer.table.at(index, stream + 2) * len(palette)).long()].movedim(-1, 1)[:, :, None, :]
    layer.paint(petals, colour.expand_as(layer.albedo))
    layer.paint(layer.inside((x.square() + y.square()).sqrt() - radius * 0.4), (0.95, 0.72, 0.2))


def _beach(far: Layer, mid: Layer, near: Layer) -> None:
    headland = HORIZON + 0.02 - 0.11 * smoothstep(0.58, 0.8, far.table.fbm1(far.u, 5, 3, 1))
    far.paint(far.below(headland) * far.inside(far.y - HORIZON), (0.40, 0.52, 0.48))
    _sails(far, 20)
    shore = 0.80 + 0.035 * mid.table.noise1(mid.u, 5, 30) + 0.008 * mid.table.noise1(mid.u, 24, 31)
    for lift, colour in ((0.022, (0.72, 0.92, 0.92)), (0.012, (1.0, 1.0, 1.0))):
        mid.paint(mid.below(shore - lift), colour)
    _ground(mid, shore, (0.74, 0.60, 0.42), (0.96, 0.84, 0.60), 0.07)
    near.paint(near.below(torch.full_like(shore, 0.905) + 0.04 * near.table.noise1(near.u, 5, 40)), (0.98, 0.87, 0.64))
    grain = near.table.noise2(near.u, near.y[:, 0], 200, 40, 44)
    near.shade(0.25 * smoothstep(0.62, 0.8, grain), (0.78, 0.62, 0.40))
    _huts(near, 60)
    _tufts(near, 0.97, 14, 70, (0.45, 0.58, 0.28))


def _sails(layer: Layer, stream: int) -> None:
    """Small sailing boats on the water line."""
    index, x = _cells(layer, 5)
    x = x[None, None, :] + (layer.table.at(index, stream)[:, None, :] - 0.5) * 0.25
    y = layer.y - HORIZON
    there = (layer.table.at(index, stream + 1) < 0.7)[:, None, :]
    sail = torch.maximum(x.abs() * 2.0 - (y + 0.085) * 0.9, y + 0.012)
    layer.paint(layer.inside(sail) * there, (1.0, 0.97, 0.92))
    hull = torch.maximum((y + 0.006).abs() - 0.008, x.abs() - 0.035 + (y + 0.006))
    layer.paint(layer.inside(hull) * there, (0.50, 0.28, 0.20))


def _huts(layer: Layer, stream: int) -> None:
    """Striped bathing huts with gabled roofs on the sand."""
    index, x = _cells(layer, 5)
    x = x[None, None, :] + (layer.table.at(index, stream)[:, None, :] - 0.5) * 0.2
    y = layer.y - 0.93
    there = (layer.table.at(index, stream + 1) < 0.6)[:, None, :]
    wall = torch.maximum(x.abs() - 0.05, torch.maximum(-0.11 - y, y))
    stripe = torch.sin(x * (2 * math.pi / 0.028))
    tint = torch.where(layer.table.at(index, stream + 2) < 0.5, 0.0, 1.0)[:, None, None, :]
    paint = torch.lerp(layer.field((0.30, 0.60, 0.72)), layer.field((0.85, 0.45, 0.42)), tint)
    colour = torch.lerp(paint, layer.field((0.98, 0.96, 0.90)), smoothstep(-0.3, 0.3, stripe)[:, None])
    layer.paint(layer.inside(wall) * there, colour)
    roof = torch.maximum((x.abs() * 0.75 - (y + 0.165)) * 0.8, y + 0.105)
    layer.paint(layer.inside(roof) * there, (0.42, 0.32, 0.32))
    door = torch.maximum(x.abs() - 0.017, torch.maximum(-0.075 - y, y))
    layer.paint(layer.inside(door) * there, (0.35, 0.26, 0.24))


def _tufts(layer: Layer, base: float, count: int, stream: int, colour: Colour, tall: float = 0.07) -> None:
    """Tufts of long grass: a fan of curved blades per cell."""
    index, x = _cells(layer, count)
    x = x[None, None, :] + (layer.table.at(index, stream)[:, None, :] - 0.5) * 0.1
    size = tall * (0.6 + 0.6 * layer.table.at(index, stream + 1))[:, None, :]
    up = (base - layer.y) / size
    for blade in range(5):
        lean = (blade - 2) * 0.30 * size
        middle = lean * up.clamp(0, 1).square() + (blade - 2) * 0.006
        distance = (x - middle).abs() - 0.006 * (1.05 - up).clamp(0, 1)
        layer.paint(layer.inside(distance) * layer.inside((up - 1) * size) * layer.inside(-up * size), colour)


def _lake(far: Layer, mid: Layer, near: Layer) -> None:
    _peaks(far, 0.33, 0.16, 8, 1, (0.40, 0.48, 0.62), 0.06)
    hills = 0.53 + 0.08 * (1 - mid.table.fbm1(mid.u, 5, 2, 20))
    _ground(mid, hills, (0.34, 0.54, 0.34), (0.22, 0.42, 0.26), 0.1)
    _conifers(mid, HORIZON + 0.005, 0.10, 44, 30, (0.12, 0.32, 0.22), 0.75)
    mid.crop(mid.inside(mid.y - HORIZON - 0.004)[None])
    bank = 0.955 + 0.03 * near.table.fbm1(near.u, 5, 2, 40)
    _tufts(near, 1.0, 22, 50, (0.30, 0.46, 0.20), 0.15)
    _cattails(near, 60)
    _ground(near, bank, (0.36, 0.52, 0.24), (0.22, 0.36, 0.16))


def _cattails(layer: Layer, stream: int) -> None:
    """Bulrushes: a stalk with a brown head."""
    index, x = _cells(layer, 13)
    x = x[None, None, :] + (layer.table.at(index, stream)[:, None, :] - 0.5) * 0.16
    top = (0.80 + 0.07 * layer.table.at(index, stream + 1))[:, None, :]
    there = (layer.table.at(index, stream + 2) < 0.7)[:, None, :]
    layer.paint(layer.inside(_capsule(x, layer.y, 0.0, 1.1, top, 0.004)) * there, (0.32, 0.46, 0.20))
    layer.paint(layer.inside(_capsule(x, layer.y, 0.0, top + 0.05, top + 0.01, 0.010)) * there, (0.42, 0.26, 0.14))


def _island(far: Layer, mid: Layer, near: Layer) -> None:
    islet = HORIZON + 0.03 - 0.09 * far.table.fbm1(far.u, 8, 2, 1)
    far.paint(far.below(islet) * far.inside(far.y - HORIZON), (0.45, 0.58, 0.60))
    index, x = _cells(mid, 3)
    x = x[None, :] + (mid.table.at(index, 20) - 0.5) * 0.16
    sand = 0.80 - 0.10 * smoothstep(0.37, 0.0, x.abs()) + 0.2 * smoothstep(0.32, 0.42, x.abs())
    _palms(mid, x, index, 30)
    bush = sand - 0.05 * smoothstep(0.22, 0.05, (x - 0.03).abs()) * (0.6 + 0.8 * mid.table.noise1(mid.u, 90, 25))
    mid.paint(mid.below(bush), (0.24, 0.52, 0.24))
    mid.paint(mid.below(sand - 0.0), (0.97, 0.86, 0.60))
    edge = 0.822 + 0.012 * mid.table.noise1(mid.u, 40, 26)
    mid.shade(mid.below(edge - 0.015), (0.84, 0.70, 0.46))
    mid.shade(mid.below(edge), (0.95, 1.0, 1.0))
    mid.crop(mid.inside(mid.y - 0.012 - edge[:, None, :]))
    _rocks(near, 60)


def _palms(layer: Layer, x: Tensor, index: Tensor, stream: int) -> None:
    """Three leaning palm trees per island; `x` [B, X] is the place on the island."""
    for tree, (foot, lean, tall) in enumerate(((-0.08, -0.10, 0.34), (0.06, 0.09, 0.40), (0.13, 0.16, 0.26))):
        tall_here = (tall * (0.85 + 0.3 * layer.table.at(index, stream + tree)))[:, None, :]
        up = ((0.74 - layer.y) / tall_here).clamp(-0.1, 1)
        trunk = (x[:, None, :] - foot - lean * up * up.abs()).abs() - 0.014 * (1.3 - 0.6 * up)
        trunk = torch.maximum(trunk, torch.maximum(0.74 - tall_here - layer.y, layer.y - 0.78))
        layer.paint(layer.inside(trunk), (0.50, 0.36, 0.24))
        dx, dy = x[:, None, :] - foot - lean, layer.y - (0.74 - tall_here)
        for leaf in range(7):
            angle = math.pi * (leaf / 6) + 0.1 * math.sin(leaf * 5.0 + tree)
            reach = 0.15 if leaf % 2 else 0.17
            ax, ay = math.cos(angle), -0.55 * math.sin(angle)
            along = (dx * ax + (dy + 0.0) * ay) / (ax * ax + ay * ay) / reach
            # A frond droops with the square of the way out along it.
            bend = dy - along * reach * ay - 0.10 * along.clamp(0, 1).square()
            off = dx - along * reach * ax
            width = 0.020 * (along.clamp(0, 1) * (1 - along.clamp(0, 1)) * 4).clamp_min(0).sqrt()
            frond = (
                torch.maximum((bend.square() + off.square()).sqrt() - width, torch.maximum(-along, along - 1) * reach)
                + 0.2 * layer.pixel
            )
            tone = (0.16, 0.46, 0.20) if leaf % 2 else (0.24, 0.58, 0.24)
            layer.paint(layer.inside(frond), tone)


def _rocks(layer: Layer, stream: int) -> None:
    """Boulders with a rim of foam in the near water."""
    index, x = _cells(layer, 7)
    size = (0.03 + 0.05 * layer.table.at(index, stream))[:, None, :] * (layer.table.at(index, stream + 1) < 0.75)[
        :, None, :
    ]
    x = x[None, None, :] + (layer.table.at(index, stream + 2)[:, None, :] - 0.5) * 0.2
    y = layer.y - 0.965
    rough = 0.25 * (layer.table.noise1(layer.u, 120, stream + 4)[:, None, :] - 0.5) * size
    distance = (x.square() + (y * 1.4).square()).sqrt() - size + rough
    wet = layer.inside(y - 0.02)
    layer.paint(
        layer.inside(torch.maximum((x.square() + ((y - 0.02) * 5).square()).sqrt() - size * 1.25, -size)),
        (0.95, 1.0, 1.0),
    )
    light = smoothstep(0.04, -0.06, x + y)
    layer.paint(
        layer.inside(distance) * wet,
        torch.lerp(layer.field((0.28, 0.28, 0.32)), layer.field((0.58, 0.56, 0.55)), light[:, None]),
    )


PAINTERS: dict[str, Painter] = {
    "beach": _beach,
    "mountains": _mountains,
    "desert": _desert,
    "city": _city,
    "forest": _forest,
    "meadow": _meadow,
    "lake": _lake,
    "island": _island,
}
"""What paints the three layers of each place."""
