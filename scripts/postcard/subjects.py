"""The flying subjects: eight shapes drawn in a small square around their centre.

A shape works in units of its own half height: x to where it heads, y downwards. It paints on a `Sprite`
from back to front with signed distances. Shades are of the subject's own colour, so that its colour is
never in doubt.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scripts.postcard.noise import smoothstep

REACH = 1.75
"""Half the side of the square a subject is drawn in, in units of its half height."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.08, 0.10),
    "orange": (1.0, 0.48, 0.02),
    "yellow": (1.0, 0.88, 0.08),
    "green": (0.08, 0.68, 0.20),
    "blue": (0.08, 0.24, 0.92),
    "purple": (0.52, 0.12, 0.78),
    "pink": (1.0, 0.45, 0.74),
    "white": (0.97, 0.97, 0.97),
}


class Sprite:
    """A transparent picture being painted: `x`, `y` [B, T, Y, X] in half heights, `clock` [B, T, 1, 1] in radians."""

    def __init__(self, x: Tensor, y: Tensor, clock: Tensor, colour: Tensor, pixel: Tensor) -> None:
        self.x, self.y, self.clock, self.pixel = x, y, clock, pixel
        self.base = colour[:, None, :, None, None]
        self.light = torch.lerp(self.base, torch.ones_like(self.base), 0.40)
        self.dark = self.base * 0.62
        self.rgb = torch.zeros_like(x)[:, :, None].expand(-1, -1, 3, -1, -1)
        self.cover = torch.zeros_like(x)[:, :, None]

    def inside(self, distance: Tensor) -> Tensor:
        """Coverage of a signed distance in half heights, one pixel soft."""
        return (0.5 - distance / self.pixel).clamp(0, 1)

    def paint(self, mask: Tensor, colour: Tensor | tuple[float, float, float]) -> None:
        """Cover where `mask` [B, T, Y, X] says with a colour, (3,) or broadcasting over [B, T, 3, Y, X]."""
        if not isinstance(colour, Tensor):
            colour = self.rgb.new_tensor(colour)[:, None, None]
        mask = mask[:, :, None]
        self.rgb = torch.lerp(self.rgb, colour.expand_as(self.rgb), mask)
        self.cover = torch.lerp(self.cover, torch.ones_like(self.cover), mask)

    def blend(self, amount: Tensor) -> Tensor:
        """The subject's dark, base and light shade for an `amount` [B, T, Y, X] from -1 to 1."""
        amount = amount[:, :, None]
        return torch.lerp(torch.lerp(self.base, self.dark, (-amount).clamp(0, 1)), self.light, amount.clamp(0, 1))


def _segment(x: Tensor, y: Tensor, a: tuple[float, float], b: tuple[float, float], radius: float) -> Tensor:
    """Distance to a rounded bar between two points."""
    bx, by = b[0] - a[0], b[1] - a[1]
    dx, dy = x - a[0], y - a[1]
    part = ((dx * bx + dy * by) / (bx * bx + by * by)).clamp(0, 1)
    return ((dx - bx * part).square() + (dy - by * part).square()).sqrt() - radius


def _ellipse(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    """Roughly the distance to an ellipse at the origin, exact on its edge."""
    scaled = ((x / rx).square() + (y / ry).square()).sqrt()
    slope = ((x / (rx * rx)).square() + (y / (ry * ry)).square()).sqrt()
    return scaled * (scaled - 1) / slope.clamp_min(1e-4)


def _polygon(x: Tensor, y: Tensor, *corners: tuple[float, float]) -> Tensor:
    """Distance bound to a convex polygon whose corners go clockwise on the screen."""
    edges = []
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = math.hypot(bx - ax, by - ay)
        edges.append(((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length)
    distance = edges[0]
    for edge in edges[1:]:
        distance = torch.maximum(distance, edge)
    return distance


def _balloon(s: Sprite) -> None:
    x, y = s.x, s.y
    for side in (-1.0, 1.0):
        s.paint(s.inside(_segment(x, y, (side * 0.40, 0.25), (side * 0.13, 0.78), 0.02)), (0.25, 0.2, 0.18))
    s.paint(s.inside(torch.maximum(x.abs() - 0.17, (y - 0.87).abs() - 0.13)), (0.50, 0.32, 0.16))
    s.paint(s.inside(torch.maximum(x.abs() - 0.19, (y - 0.76).abs() - 0.035)), (0.72, 0.50, 0.28))
    # A round envelope that narrows to its mouth.
    half = 0.74 * (1 - smoothstep(-0.05, 0.75, y) * 0.68)
    envelope = torch.maximum(_ellipse(x / (half / 0.74), y + 0.26, 0.74, 0.76), y - 0.50)
    gore = torch.cos(torch.asin((x / half).clamp(-0.98, 0.98)) * 5)
    shade = 0.9 * smoothstep(0.1, 0.45, gore) - 0.9 * smoothstep(0.0, 1.1, x + 0.35 * y)
    s.paint(s.inside(envelope), s.blend(shade))
    s.paint(s.inside(torch.maximum(envelope, (y - 0.42).abs() - 0.06)), s.dark)


def _kite(s: Sprite) -> None:
    x, y = s.x, s.y
    # The tail: a wave that runs down a string, with bows.
    down = ((y - 0.55) / 1.05).clamp(0, 1)
    wave = 0.22 * down * torch.sin(down * 7 - s.clock * 1.5) - 0.35 * down
    tail = torch.maximum((x - wave).abs() - 0.035, (y - 1.08).abs() - 0.53)
    s.paint(s.inside(tail), s.light)
    for spot in (0.35, 0.68, 1.0):
        at_x = 0.22 * spot * torch.sin(spot * 7 - s.clock * 1.5) - 0.35 * spot
        dx, dy = x - at_x, y - 0.55 - spot * 1.0
        s.paint(s.inside(torch.maximum(dx.abs() - 0.17, dy.abs() - 0.03 - 0.5 * dx.abs())), s.base)
    diamond = _polygon(x, y, (0.0, -1.1), (0.78, -0.28), (0.0, 0.75), (-0.78, -0.28))
    panel = torch.where((x > 0) ^ (y > -0.28), 0.55, -0.35)
    s.paint(s.inside(diamond), s.blend(panel))
    s.paint(s.inside(torch.maximum(diamond, torch.minimum(x.abs(), (y + 0.28).abs()) - 0.04)), s.dark * 0.7)
    s.paint(s.inside(diamond.abs() - 0.045), s.base)


def _wing(s: Sprite, lift: Tensor, span: float, chord: float) -> Tensor:
    """Distance to a bird's wing from the shoulder, bent at the elbow; `lift` from -1 (down) to 1 (up)."""
    reach = lift * span
    up = (-s.y + 0.05) / torch.where(reach.abs() < 0.12, torch.where(reach < 0, -0.12, 0.12), reach)
    middle = 0.10 - 0.45 * up.clamp(0, 1).square()
    width = chord * (1 - up.clamp(0, 1)).clamp_min(0).sqrt()
    flat = torch.maximum((s.x - middle).abs() - width, torch.maximum(-up, up - 1) * reach.abs().clamp_min(0.12))
    return flat


def _bird(s: Sprite) -> None:
    x, y = s.x, s.y
    lift = torch.sin(s.clock * 2.4)
    s.paint(s.inside(_wing(s, lift * 0.9 + 0.08, 1.0, 0.36)), s.dark)
    s.paint(s.inside(_polygon(x, y, (-0.70, -0.06), (-0.6, 0.16), (-1.35, 0.30), (-1.25, -0.12))), s.dark)
    body = _ellipse(x + 0.05, y - 0.05, 0.82, 0.29)
    s.paint(s.inside(body), s.blend((0.25 - y * 3.0).clamp(-0.8, 0.9)))
    s.paint(s.inside(_ellipse(x - 0.72, y + 0.16, 0.27, 0.25)), s.base)
    s.paint(s.inside(_polygon(x, y, (0.94, -0.26), (1.28, -0.10), (0.94, -0.06))), (1.0, 0.72, 0.15))
    s.paint(s.inside(_ellipse(x - 0.80, y + 0.20, 0.065, 0.065)), (0.05, 0.05, 0.08))
    wing = _wing(s, lift, 1.05, 0.40)
    s.paint(s.inside(wing), s.blend(0.7 - (x + 0.4).abs() * 0.6))


def _airship(s: Sprite) -> None:
    x, y = s.x, s.y
    for side in (-1.0, 1.0):
        fin = _polygon(x, y * side, (-1.50, -0.62), (-1.12, -0.60), (-0.80, -0.15), (-1.40, -0.10))
        s.paint(s.inside(fin), s.dark)
    s.paint(s.inside(_segment(x, y, (-0.30, 0.66), (0.35, 0.66), 0.15)), (0.30, 0.28, 0.32))
    for window in range(4):
        s.paint(s.inside(_ellipse(x + 0.30 - 0.22 * window, y - 0.64, 0.06, 0.06)), (1.0, 0.92, 0.6))
    hull = _ellipse(x - 0.05, y, 1.55, 0.62)
    rib = torch.cos(x * 4.2) * smoothstep(0.62, 0.2, y.abs())
    shade = (-y * 1.7 - 0.15) + 0.35 * smoothstep(0.75, 1.0, rib)
    s.paint(s.inside(hull), s.blend(shade.clamp(-1, 0.85)))
    s.paint(s.inside(torch.maximum(hull, (y - 0.03).abs() - 0.055)), s.light)
    s.paint(s.inside(_segment(x, y, (-1.60, 0.0), (-1.05, 0.0), 0.05)), s.dark)


def _plane(s: Sprite) -> None:
    x, y = s.x, s.y
    s.paint(s.inside(_polygon(x, y, (-1.15, -0.85), (1.45, 0.05), (-0.62, 0.02))), s.light)
    s.paint(s.inside(_polygon(x, y, (-0.62, 0.02), (1.45, 0.05), (-0.60, 0.72))), s.dark)
    s.paint(s.inside(_polygon(x, y, (-1.30, 0.15), (-0.62, 0.00), (1.45, 0.05), (-0.95, 0.42))), s.base)
    s.paint(s.inside(_segment(x, y, (-0.62, 0.02), (1.45, 0.05), 0.03)), s.dark * 0.6)


def _butterfly(s: Sprite) -> None:
    y = s.y
    # Wings seen from above fold and open: the picture is squeezed towards the body.
    open_ = 0.42 + 0.58 * (0.5 + 0.5 * torch.sin(s.clock * 2.2))
    x = s.x / open_
    ax = x.abs()
    lower = _ellipse(ax - 0.48, y - 0.50, 0.42, 0.46) * open_
    c, d = math.cos(0.6), math.sin(0.6)
    ux, uy = (ax - 0.66) * c - (y + 0.36) * d, (ax - 0.66) * d + (y + 0.36) * c
    upper = _ellipse(ux, uy, 0.72, 0.46) * open_
    s.paint(s.inside(lower), s.blend(-0.25 - 0.5 * smoothstep(0.3, 0.9, y)))
    s.paint(s.inside(lower.abs() - 0.04), s.dark * 0.55)
    s.paint(s.inside(upper), s.blend(0.4 - 0.5 * smoothstep(0.3, 1.1, ax)))
    s.paint(s.inside(upper.abs() - 0.05), s.dark * 0.55)
    s.paint(s.inside(_ellipse(ax - 0.85, y + 0.50, 0.16, 0.16) * open_), s.light)
    s.paint(s.inside(_ellipse(ax - 0.52, y - 0.55, 0.13, 0.13) * open_), s.light)
    s.paint(s.inside(_segment(s.x, y, (0.0, -0.45), (0.0, 0.62), 0.09)), (0.12, 0.09, 0.12))
    s.paint(s.inside(_segment(s.x.abs(), y, (0.04, -0.5), (0.26, -0.92), 0.025)), (0.12, 0.09, 0.12))


def _saucer(s: Sprite) -> None:
    x, y = s.x, s.y
    beam = torch.maximum(x.abs() - 0.28 - 0.30 * (y - 0.3), 0.3 - y)
    fade = smoothstep(1.6, 0.35, y) * 0.34
    s.paint(s.inside(beam) * fade, (1.0, 0.98, 0.75))
    dome = torch.maximum(_ellipse(x, y + 0.10, 0.62, 0.66), y - 0.1)
    s.paint(s.inside(dome), (0.62, 0.82, 0.90))
    s.paint(s.inside(_ellipse(x + 0.22, y + 0.40, 0.14, 0.18)), (0.92, 0.98, 1.0))
    disc = _ellipse(x, y - 0.16, 1.50, 0.42)
    s.paint(s.inside(disc), s.blend((0.35 - (y - 0.05) * 2.6).clamp(-1, 0.8)))
    s.paint(s.inside(torch.maximum(disc, (y + 0.02 - 0.06 * x.square()).abs() - 0.05)), s.light)
    for lamp in range(5):
        glow = 0.5 + 0.5 * torch.sin(s.clock * 2.0 + lamp * 2 * math.pi / 5)
        at = -1.0 + 0.5 * lamp
        s.paint(s.inside(_ellipse(x - at, y - 0.26 + 0.08 * abs(at), 0.11, 0.10)), (0.2, 0.18, 0.2))
        s.paint(s.inside(_ellipse(x - at, y - 0.26 + 0.08 * abs(at), 0.11, 0.10)) * glow, (1.0, 0.97, 0.72))


def _umbrella(s: Sprite) -> None:
    x, y = s.x, s.y
    s.paint(s.inside(_segment(x, y, (0.0, -0.95), (0.0, 0.80), 0.05)), (0.42, 0.28, 0.18))
    hook = torch.maximum(((x - 0.17).square() + (y - 0.80).square()).sqrt().sub(0.17).abs() - 0.055, 0.80 - y)
    s.paint(s.inside(hook), (0.42, 0.28, 0.18))
    canopy = torch.maximum(_ellipse(x, y - 0.02, 1.12, 0.88), y - 0.02)
    # Scallops: bites out of the lower edge, one per panel.
    panel = x / 0.56 - 0.5
    bite = ((panel - panel.round()) * 0.56).square() + ((y - 0.05) * 1.3).square()
    canopy = torch.maximum(canopy, 0.19 - bite.sqrt())
    bend = torch.asin((x / (1.12 * (1 - ((y - 0.02) / 0.88).square()).clamp_min(0.02).sqrt())).clamp(-0.99, 0.99))
    stripe = torch.sin(bend * 4)
    s.paint(s.inside(canopy), s.blend(0.75 * smoothstep(-0.15, 0.15, stripe) - 0.55 * smoothstep(-0.3, 1.3, x) - 0.1))
    s.paint(s.inside(_segment(x, y, (0.0, -1.0), (0.0, -0.86), 0.04)), (0.3, 0.2, 0.15))


SHAPES: dict[str, Callable[[Sprite], None]] = {
    "hot air balloon": _balloon,
    "kite": _kite,
    "bird": _bird,
    "airship": _airship,
    "paper plane": _plane,
    "butterfly": _butterfly,
    "flying saucer": _saucer,
    "umbrella": _umbrella,
}
"""What paints each subject."""

SIZES: dict[str, float] = {"kite": 0.95, "airship": 1.0, "flying saucer": 1.0, "paper plane": 1.05, "bird": 1.05}
"""Correction of the half height, so that all subjects look equally large."""

WIDTHS: dict[str, float] = {
    "hot air balloon": 0.80,
    "kite": 0.85,
    "bird": 1.40,
    "airship": 1.65,
    "paper plane": 1.50,
    "butterfly": 1.35,
    "flying saucer": 1.55,
    "umbrella": 1.20,
}
"""Half widths in units of the half height: a drifting subject this far outside is just out of sight."""

UPRIGHT = frozenset({"hot air balloon", "kite", "butterfly", "flying saucer", "umbrella"})
"""Subjects that are not mirrored with their heading."""
