"""Light and sky: palettes by time of day and weather, the sun, the moon, stars and clouds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.postcard.grammar import ATTRIBUTES
from scripts.postcard.noise import RandomTable, smoothstep
from scripts.postcard.strips import Layer

_TIMES = ATTRIBUTES["time"]
_WEATHERS = ATTRIBUTES["weather"]

# Sky at the zenith, half-way and at the horizon, then the light on the land, then the lit and shaded cloud.
_PALETTES: dict[str, tuple[tuple[tuple[float, float, float], ...], ...]] = {
    "dawn": (
        ((0.42, 0.50, 0.80), (0.84, 0.70, 0.86), (1.0, 0.86, 0.76)),
        ((0.86, 0.76, 0.84), (1.0, 0.90, 0.90), (0.70, 0.62, 0.78)),
    ),
    "noon": (
        ((0.14, 0.42, 0.88), (0.38, 0.66, 0.96), (0.78, 0.91, 0.98)),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.74, 0.80, 0.90)),
    ),
    "sunset": (
        ((0.24, 0.12, 0.40), (0.80, 0.28, 0.36), (1.0, 0.64, 0.20)),
        ((0.72, 0.42, 0.38), (1.0, 0.62, 0.38), (0.48, 0.22, 0.40)),
    ),
    "night": (
        ((0.03, 0.04, 0.13), (0.06, 0.11, 0.28), (0.17, 0.25, 0.48)),
        ((0.33, 0.39, 0.60), (0.34, 0.39, 0.58), (0.10, 0.13, 0.27)),
    ),
}
# How grey the weather makes everything, how bright, and how much of the sun or moon comes through.
_MOODS: dict[str, tuple[float, float, float]] = {
    "clear": (0.0, 1.0, 1.0),
    "cloudy": (0.25, 0.94, 0.55),
    "rain": (0.66, 0.72, 0.0),
    "snow": (0.75, 0.98, 0.05),
    "fog": (0.80, 0.95, 0.30),
}
# Cloud cover threshold and opacity; without clouds the threshold is out of reach.
_CLOUDS: dict[str, tuple[float, float]] = {
    "clear": (9.0, 0.0),
    "cloudy": (0.44, 0.95),
    "rain": (0.30, 0.85),
    "snow": (0.30, 0.60),
    "fog": (9.0, 0.0),
}


@dataclass(frozen=True)
class Light:
    """The colours of a batch's light, each [B, 3], and three numbers per clip, each [B, 1, 1]."""

    zenith: Tensor
    middle: Tensor
    horizon: Tensor
    ambient: Tensor
    cloud_lit: Tensor
    cloud_dark: Tensor
    night: Tensor
    disc: Tensor
    grey: Tensor


def light(times: list[int], weathers: list[int], like: Tensor) -> Light:
    """The light for the class indices of time and weather, on the device of `like`."""
    palettes = like.new_tensor([_PALETTES[_TIMES[i]] for i in times]).flatten(1, 2)
    moods = like.new_tensor([_MOODS[_WEATHERS[i]] for i in weathers])
    grey, bright, disc = moods[:, 0, None, None], moods[:, 1, None, None], moods[:, 2, None, None]
    luma = (palettes * like.new_tensor((0.3, 0.5, 0.2))).sum(2, keepdim=True)
    # Only part of the way to grey, so that a rainy sunset is still a sunset.
    night = like.new_tensor([float(_TIMES[i] == "night") for i in times])[:, None, None]
    # Clouds dim the day but light up a night, which must stay bright enough to tell the places apart.
    bright = torch.lerp(bright, 1 + 0.6 * grey, night)
    colours = torch.lerp(palettes, luma, grey * 0.75) * bright
    zenith, middle, horizon, ambient, cloud_lit, cloud_dark = colours.unbind(1)
    return Light(zenith, middle, horizon, ambient, cloud_lit, cloud_dark, night, disc, grey)


def sky(table: RandomTable, tones: Light, times: list[int], height: int, width: int) -> tuple[Tensor, Tensor]:
    """The still part of the sky [B, 3, H, W], and where the sun or moon stands, [B, 1, 1] in heights."""
    like = table.values
    y = ((torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height)[:, None]
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / height
    low, high = smoothstep(0.30, 0.66, y), smoothstep(0.0, 0.36, y)
    image = torch.lerp(tones.zenith[:, :, None, None], tones.middle[:, :, None, None], high)
    image = torch.lerp(image, tones.horizon[:, :, None, None], low).expand(-1, -1, -1, width)
    spec = like.new_tensor([_DISCS[_TIMES[i]] for i in times])[:, :, None, None]
    sun_x = width / height * table.scalar(901, 0.15, 0.85)
    sun_y = spec[:, 0] + table.scalar(902, -0.04, 0.04)
    distance = ((x - sun_x).square() + (y - sun_y).square()).sqrt()
    radius, reach = spec[:, 1], spec[:, 2]
    # A crescent: the moon's disc less a second disc beside it.
    bite = ((x - sun_x - 0.028).square() + (y - sun_y + 0.018).square()).sqrt()
    disc = ((radius - distance) * height + 0.5).clamp(0, 1)
    disc = disc * (1 - tones.night * ((0.052 - bite) * height + 0.5).clamp(0, 1))
    glow = torch.exp(-distance / reach) * spec[:, 6] * (0.4 + 0.6 * tones.disc)
    colour = spec[:, 3:6]
    image = image + _stars(table, height, width, y, x)[:, None] * (tones.night * tones.disc.square())[:, None]
    image = torch.lerp(image, colour, (glow * (0.3 + 0.7 * tones.disc)).clamp(0, 1)[:, None])
    return torch.lerp(image, (colour * 1.05).clamp(max=1.0), (disc * tones.disc)[:, None]), sun_x


# Height of the disc, its radius, the glow's reach, the colour, the glow's strength.
_DISCS: dict[str, tuple[float, ...]] = {
    "dawn": (0.46, 0.050, 0.16, 1.0, 0.93, 0.78, 0.75),
    "noon": (0.13, 0.045, 0.08, 1.0, 0.99, 0.86, 0.80),
    "sunset": (0.52, 0.085, 0.18, 1.0, 0.78, 0.30, 0.80),
    "night": (0.15, 0.060, 0.09, 0.93, 0.94, 0.86, 0.45),
}


def _stars(table: RandomTable, height: int, width: int, y: Tensor, x: Tensor) -> Tensor:
    """Points of light [B, H, W] of different brightness, thinning out towards the horizon."""
    size = 0.045
    cell = (x / size).floor().long() + (y / size).floor().long() * 97
    at_x = ((x / size).floor() + 0.2 + 0.6 * table.at(cell, 910)) * size
    at_y = ((y / size).floor() + 0.2 + 0.6 * table.at(cell, 911)) * size
    bright = table.at(cell, 912)
    radius = 0.0035 + 0.004 * bright
    spark = torch.exp(-((x - at_x).square() + (y - at_y).square()) / radius.square())
    return spark * smoothstep(0.45, 1.0, bright) * smoothstep(0.62, 0.3, y)


def clouds(table: RandomTable, tones: Light, weathers: list[int], height: int) -> tuple[Tensor, Tensor]:
    """Premultiplied colour [B, 3, Y, X] and cover [B, 1, Y, X] of a strip of clouds, lit from above."""
    layer = Layer(table, height)
    spec = table.values.new_tensor([_CLOUDS[_WEATHERS[i]] for i in weathers])[:, :, None, None]
    v = layer.y[:, 0]
    density = table.fbm2(layer.u, v, 10, 7, 4, 930)
    above = table.fbm2(layer.u, (v - 0.035).clamp_min(0), 10, 7, 4, 930)
    # Flat bases and gaps near the horizon read as distance.
    thickness = density - spec[:, 0] - 0.12 * smoothstep(0.35, 0.62, layer.y)
    cover = smoothstep(0.0, 0.14, thickness) * spec[:, 1]
    shade = (0.5 + (density - above) * 3.5 - thickness * 0.8).clamp(0, 1)
    colour = torch.lerp(tones.cloud_dark[:, :, None, None], tones.cloud_lit[:, :, None, None], shade[:, None])
    return colour * cover[:, None], cover[:, None]
