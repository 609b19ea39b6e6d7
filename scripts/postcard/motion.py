"""Where everything is at a time: the subject on the screen and the camera over the scenery.

Times are float64 seconds on the CPU, so that a stream stays smooth and repeatable however long it runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.postcard.grammar import ATTRIBUTES

_MOTIONS = ATTRIBUTES["motion"]
_CAMERAS = ATTRIBUTES["camera"]


@dataclass(frozen=True)
class Path:
    """Per frame, float64 [B, T], in frame heights: subject centre, its tilt (radians), heading (+-1), camera place."""

    x: Tensor
    y: Tensor
    tilt: Tensor
    heading: Tensor
    camera: Tensor


def _pick(random: Tensor, column: int, low: float, high: float) -> Tensor:
    return low + (high - low) * random[:, column, None]


def _signs(names: list[str], minus: str, plus: str) -> Tensor:
    """-1, 1 or 0 per name, float64 [B, 1]."""
    return torch.tensor([float(name == plus) - float(name == minus) for name in names], dtype=torch.float64)[:, None]


def path(motions: list[int], cameras: list[int], random: Tensor, times: Tensor, aspect: float, margin: Tensor) -> Path:
    """Paths for class indices of motion and camera.

    `random` is uniform float64 [B, 16 or more], `times` seconds float64 [T], `aspect` width over height and
    `margin` half the subject's width [B, 1] in frame heights.
    """
    names = [_MOTIONS[i] for i in motions]
    way = _signs(names, "drifts left", "drifts right")
    is_bob = torch.tensor([name == "bobs up and down" for name in names])[:, None]
    is_round = torch.tensor([name == "circles" for name in names])[:, None]
    start, turn = _pick(random, 0, 0, 1), _pick(random, 1, 0, 2 * math.pi)
    middle = aspect * _pick(random, 2, 0.38, 0.62)
    # It re-enters at one side as soon as it has left at the other.
    lap = aspect + 2 * margin
    drift = (start * lap + way * times * lap / _pick(random, 3, 3.2, 4.8)) % lap - margin
    bob = _pick(random, 4, 0.12, 0.18) * torch.sin(times * 2 * math.pi / _pick(random, 5, 1.5, 2.5) + turn)
    radius, spin = _pick(random, 6, 0.14, 0.20), torch.where(_pick(random, 7, 0, 1) < 0.5, -1.0, 1.0)
    angle = spin * times * 2 * math.pi / _pick(random, 8, 2.0, 3.5) + turn
    breath = 0.004 * torch.sin(times * 2 * math.pi / 3.0 + turn)
    rest = _pick(random, 9, 0.28, 0.46)
    x = torch.where(way != 0, drift, middle + is_round * radius * torch.cos(angle))
    y = rest + is_round * (0.40 - rest + radius * torch.sin(angle)) + is_bob * (0.40 - rest + bob) + breath
    side = torch.where(_pick(random, 10, 0, 1) < 0.5, -1.0, 1.0)
    heading = torch.where(way != 0, way, side).expand_as(x)
    tilt = 0.05 * torch.sin(times * 2 * math.pi / 2.7 + turn) + 0.06 * way
    return Path(x, y, tilt.expand_as(x), heading, _camera(cameras, random, times))


def _camera(cameras: list[int], random: Tensor, times: Tensor) -> Tensor:
    """How far right [B, T] the camera stands, as the nearest layer sees it."""
    names = [_CAMERAS[i] for i in cameras]
    pan = _signs(names, "pans left", "pans right")
    sways = torch.tensor([name == "sways" for name in names])[:, None]
    wave = _pick(random, 11, 8 / 128, 12 / 128) * torch.sin(
        times * 2 * math.pi / _pick(random, 12, 2.5, 4.0) + _pick(random, 13, 0, 2 * math.pi)
    )
    return _pick(random, 14, 0, 3) + pan * times * _pick(random, 15, 30 / 128, 45 / 128) + sways * wave
