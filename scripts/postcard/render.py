"""Render scenes to video: the order in which sky, scenery, subject and weather are laid over each other.

Scenery is painted once per clip on strips (`strips`), the subject per frame in a small square, and whatever
falls or drifts scrolls past; what is left to do per frame and pixel is mostly to composite. Memory traffic
decides the speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.postcard import motion, sky, weather
from scripts.postcard.grammar import ATTRIBUTES, Scene
from scripts.postcard.noise import TABLE_SIZE, RandomTable
from scripts.postcard.scenes import PAINTERS, WATER_AFTER
from scripts.postcard.strips import OVERSAMPLING, PERIOD, Layer, lay, slide, translucent
from scripts.postcard.subjects import COLOURS, REACH, SHAPES, SIZES, UPRIGHT, WIDTHS, Sprite
from scripts.postcard.water import flood

FRAME_RATE = 16
"""Frames per second."""

CLIPS_AT_ONCE = 16
"""Most clips of one place that are composited together; bounds the memory."""

# How fast each layer passes while the nearest moves by one, and how much of the horizon's haze it takes.
_DEPTHS = (0.30, 0.60, 1.0)
_HAZE = (0.38, 0.12, 0.0)
_FOG_HAZE = (0.72, 0.35, 0.0)
_PLACES, _TIMES, _WEATHERS, _SUBJECTS, _COLOURS, _MOTIONS, _CAMERAS = ATTRIBUTES.values()


@dataclass(frozen=True)
class _Clips:
    """Some clips of a batch: class indices (one list per attribute), numbers and paths."""

    kinds: list[list[int]]
    table: RandomTable
    random: Tensor
    size: Tensor
    path: motion.Path
    times: Tensor

    def take(self, rows: list[int]) -> _Clips:
        """The clips at `rows`."""
        where = torch.tensor(rows)
        path = motion.Path(*(getattr(self.path, name)[where] for name in ("x", "y", "tilt", "heading", "camera")))
        table = RandomTable(self.table.values[where.to(self.table.values.device)])
        kinds = [[values[row] for row in rows] for values in self.kinds]
        return _Clips(kinds, table, self.random[where], self.size[where], path, self.times)


def render(
    scenes: Sequence[Scene],
    *,
    frames: int = 81,
    height: int = 128,
    width: int = 128,
    seed: int,
    device: torch.device | str = "cpu",
    start_time: float = 0.0,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """Video [B, T, 3, H, W] of scenes; see `render_indices`."""
    indices = torch.tensor([scene.indices() for scene in scenes], dtype=torch.int64).reshape(-1, len(ATTRIBUTES))
    return render_indices(
        indices, frames=frames, height=height, width=width, seed=seed, device=device, start_time=start_time, dtype=dtype
    )


@torch.no_grad()
def render_indices(
    indices: Tensor,
    *,
    frames: int = 81,
    height: int = 128,
    width: int = 128,
    seed: int,
    device: torch.device | str = "cpu",
    start_time: float = 0.0,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """Video [B, T, 3, H, W] of class indices int64 [B, 7].

    uint8 in 0..255, or any floating `dtype` in [-1, 1]. `start_time` (seconds) begins the clip further
    along the same endless timeline; the seed and a clip's place in the batch settle everything random.
    """
    device = torch.device(device)
    clips = _prepare(indices, frames, height, width, seed, device, start_time)
    video = torch.empty(len(indices), frames, 3, height, width, dtype=dtype, device=device)
    for rows in _groups(clips.kinds[0], CLIPS_AT_ONCE):
        some = clips.take(rows)
        picture = _compose(some, height, width)
        video[torch.tensor(rows, device=device)] = _quantize(picture, dtype)
    return video


def subject_paths(
    indices: Tensor, frames: int, height: int, width: int, seed: int, start_time: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the subjects of such a clip are: centre x and y [B, T] and half-size [B, 1], float64, in frame heights."""
    clips = _prepare(indices, frames, height, width, seed, torch.device("cpu"), start_time)
    return clips.path.x, clips.path.y, clips.size


def _prepare(
    indices: Tensor, frames: int, height: int, width: int, seed: int, device: torch.device, start_time: float
) -> _Clips:
    """Draw every random number of the batch and lay out all paths."""
    generator = torch.Generator().manual_seed(seed)
    count = len(indices)
    random = torch.rand(count, 24, generator=generator, dtype=torch.float64)
    table = RandomTable(torch.rand(count, TABLE_SIZE, generator=generator).to(device))
    kinds = [[int(value) for value in column] for column in indices.cpu().T.tolist()]
    times = start_time + torch.arange(frames, dtype=torch.float64) / FRAME_RATE
    scale = torch.tensor([SIZES.get(_SUBJECTS[i], 1.0) for i in kinds[3]], dtype=torch.float64)
    size = (0.105 + 0.035 * random[:, 16, None]) * scale[:, None]
    margin = size * torch.tensor([[WIDTHS[_SUBJECTS[i]]] for i in kinds[3]], dtype=torch.float64)
    path = motion.path(kinds[5], kinds[6], random, times, width / height, margin)
    return _Clips(kinds, table, random, size, path, times)


def _groups(values: list[int], most: int) -> list[list[int]]:
    """Rows of equal value, at most `most` together."""
    alike: dict[int, list[int]] = {}
    for row, value in enumerate(values):
        alike.setdefault(value, []).append(row)
    return [rows[i : i + most] for rows in alike.values() for i in range(0, len(rows), most)]


def _compose(clips: _Clips, height: int, width: int) -> Tensor:
    """Frames [B, T, 3, H, W] in [0, 1] of clips that share a place."""
    table, camera, times = clips.table, clips.path.camera, clips.times
    place = _PLACES[clips.kinds[0][0]]
    # Half precision halves the traffic; its 11 bits are finer than the 8 of the result.
    kind = torch.float16 if table.values.is_cuda else torch.float32
    tones = sky.light(clips.kinds[1], clips.kinds[2], table.values)
    still, sun_x = sky.sky(table, tones, clips.kinds[1], height, width)
    frames = still.to(kind)[:, None].repeat(1, len(times), 1, 1, 1)
    drift = camera * 0.08 + times * 0.03
    _slide_over(frames, translucent(*sky.clouds(table, tones, clips.kinds[2], height)), drift)
    layers = _paint_layers(clips, place, tones, height)
    for depth, strip in enumerate(layers):
        _slide_over(frames, strip, camera * _DEPTHS[depth])
        if WATER_AFTER.get(place) == depth:
            flood(frames, place, times, camera, sun_x, tones.ambient, tones.cloud_lit)
    _weather(frames, clips, tones, "behind")
    _shadow(frames, clips)
    _place_subjects(frames, clips, tones)
    _weather(frames, clips, tones, "before")
    return frames.mul_(_vignette(height, width, frames))


def _slide_over(frames: Tensor, strip: Tensor, offset: Tensor) -> None:
    """Lay a premultiplied strip over frames, `offset` [B, T] heights along."""
    height, width = frames.shape[-2:]
    columns = strip.shape[3]
    column = (offset % PERIOD * (columns / PERIOD)).floor().long().to(strip.device)
    lay(frames, slide(strip.to(frames.dtype), column, None, height, width, (1, OVERSAMPLING)))


def _paint_layers(clips: _Clips, place: str, tones: sky.Light, height: int) -> list[Tensor]:
    """The lit strips [B, 4, H, X] of the far, middle and near scenery."""
    layers = [Layer(clips.table, height) for _ in _DEPTHS]
    PAINTERS[place](*layers)
    weathers = [_WEATHERS[i] for i in clips.kinds[2]]
    snowy, foggy = (tones.grey.new_tensor([float(w == name) for w in weathers]) for name in ("snow", "fog"))
    snowy, foggy = snowy[:, None, None, None], foggy[:, None, None, None]
    strips = []
    for layer, haze, fog_haze in zip(layers, _HAZE, _FOG_HAZE, strict=True):
        luma = layer.albedo.mean(1, keepdim=True)
        albedo = torch.lerp(layer.albedo, luma, tones.grey[:, None] * 0.5)
        albedo = torch.lerp(albedo, 0.66 * layer.cover + 0.34 * luma, snowy * 0.62)
        lit = albedo * tones.ambient[:, :, None, None]
        amount = haze + (fog_haze - haze) * foggy
        lit = torch.lerp(lit, tones.horizon[:, :, None, None] * layer.cover, amount)
        lit = lit + layer.glow * (tones.night * 0.9)[:, None] * (1 - 0.5 * amount)
        strips.append(translucent(torch.minimum(lit, layer.cover), layer.cover))
    return strips


def _weather(frames: Tensor, clips: _Clips, tones: sky.Light, side: str) -> None:
    """Apply to each clip the part of its weather that is "behind" or "before" the subject, in place."""
    for rows in _groups(clips.kinds[2], CLIPS_AT_ONCE):
        name = _WEATHERS[clips.kinds[2][rows[0]]]
        if name not in ("rain", "snow", "fog") or (name == "fog" and side == "before"):
            continue
        where = torch.tensor(rows, device=frames.device)
        table, some = RandomTable(clips.table.values[where]), frames[where]
        if name == "fog":
            layer = Layer(table, frames.shape[3])
            density = weather.fog_strip(table, layer.u, layer.y)
            colour = torch.lerp(tones.horizon, tones.cloud_lit, 0.7)[where][:, :, None, None]
            offset = clips.path.camera[rows] * 0.7 + clips.times * 0.06
            _slide_over(some, translucent(colour * density, density), offset)
        else:
            weather.precipitation(some, table, clips.times, name, side, tones.cloud_lit[where])
        frames[where] = some


def _shadow(frames: Tensor, clips: _Clips) -> None:
    """A soft shadow on the ground under the subject, in place."""
    height, width = frames.shape[-2:]
    x = (torch.arange(width, dtype=torch.float64) + 0.5) / height
    y = (torch.arange(height, dtype=torch.float64) + 0.5) / height
    top = round(0.78 * height)
    lift = (0.9 - clips.path.y).clamp(0.3, 0.8)
    across = torch.exp(-((x - clips.path.x[:, :, None]) / (clips.size * 1.2)[:, :, None]).square())
    along = torch.exp(-((y[top:] - 0.89) / 0.030).square())
    across = (across * (0.40 / (0.6 + lift))[:, :, None]).to(frames.device, frames.dtype)
    dark = across[:, :, None, None, :] * along.to(frames.device, frames.dtype)[:, None]
    frames[:, :, :, top:].mul_(1 - dark)


def _place_subjects(frames: Tensor, clips: _Clips, tones: sky.Light) -> None:
    """Composite each clip's subject where its path has it, in place."""
    for rows in _groups(clips.kinds[3], CLIPS_AT_ONCE):
        some = clips.take(rows)
        where = torch.tensor(rows, device=frames.device)
        height = frames.shape[-2]
        side = 2 * int(REACH * float(some.size.max()) * height + 2)
        left = (some.path.x * height - side / 2).floor()
        top = (some.path.y * height - side / 2).floor()
        sprite = _draw(some, left, top, side, height, tones.ambient[where])
        frames[where] = _stamp(frames[where], sprite.to(frames.dtype), left, top)


def _draw(clips: _Clips, left: Tensor, top: Tensor, side: int, height: int, ambient: Tensor) -> Tensor:
    """Premultiplied squares [B, T, 4, side, side] (`strips.translucent`) of clips that share a subject.

    `left`, `top` float64 [B, T] are the pixel of each square's corner.
    """
    device = ambient.device
    name = _SUBJECTS[clips.kinds[3][0]]
    spot = torch.arange(side, dtype=torch.float64) + 0.5
    scale = 1 / (clips.size * height)
    x = ((left - clips.path.x * height) * scale)[..., None, None].to(device, torch.float32)
    y = ((top - clips.path.y * height) * scale)[..., None, None].to(device, torch.float32)
    pixel = scale[:, :, None, None].to(device, torch.float32)
    x = x + pixel * spot.to(device, torch.float32)
    y = y + pixel * spot.to(device, torch.float32)[:, None]
    cos, sin = (f(clips.path.tilt)[..., None, None].to(device, torch.float32) for f in (torch.cos, torch.sin))
    x, y = x * cos + y * sin, y * cos - x * sin
    if name not in UPRIGHT:
        x = x * clips.path.heading[..., None, None].to(device, torch.float32)
    clock = (clips.times * 2.6 + clips.random[:, 17, None] * 6.3) % (10 * 2 * torch.pi)
    sprite = Sprite(x, y, clock[..., None, None].to(device, torch.float32), _colours(clips, device), pixel)
    SHAPES[name](sprite)
    # Its own light keeps the colour readable at night; the time of day only tints it. The colour is multiplied
    # by the cover once more than it need be: that draws a thin dark outline, which lifts it off a pale sky.
    tint = (0.78 + 0.22 * ambient)[:, None, :, None, None]
    inner = ((spot - side / 2).abs() < side / 2 - 1).to(device, torch.float32)
    return (
        torch.cat([sprite.rgb * tint * sprite.cover, 1 - sprite.cover], dim=2)
        .sub_(_EMPTY.to(device))
        .mul_(inner * inner[:, None])
        .add_(_EMPTY.to(device))
    )


_EMPTY = torch.tensor([0.0, 0.0, 0.0, 1.0])[:, None, None]


def _colours(clips: _Clips, device: torch.device) -> Tensor:
    """The subjects' colours [B, 3], each a little off its class's own."""
    base = torch.tensor([COLOURS[_COLOURS[i]] for i in clips.kinds[4]], dtype=torch.float64)
    return (base * (0.95 + 0.05 * clips.random[:, 18:21])).to(device, torch.float32)


def _stamp(frames: Tensor, sprite: Tensor, left: Tensor, top: Tensor) -> Tensor:
    """Frames with squares [B, T, 4, side, side] laid over them at pixels `left`, `top`, which may be off the frame."""
    clips, count, _, height, width = frames.shape
    side = sprite.shape[-1]
    # The square's border is transparent, so clamping to it repeats nothing visible.
    column = (torch.arange(width) - left[..., None].long()).clamp(0, side - 1).to(frames.device)
    row = (torch.arange(height) - top[..., None].long()).clamp(0, side - 1).to(frames.device)
    clip = torch.arange(clips, device=frames.device)[:, None, None, None, None]
    time = torch.arange(count, device=frames.device)[:, None, None, None]
    channel = torch.arange(4, device=frames.device)[:, None, None]
    lay(frames, sprite[clip, time, channel, row[:, :, None, :, None], column[:, :, None, None, :]])
    return frames


def _vignette(height: int, width: int, like: Tensor) -> Tensor:
    """A factor [H, W] that darkens the corners slightly."""
    y = torch.linspace(-1, 1, height, device=like.device)[:, None]
    x = torch.linspace(-1, 1, width, device=like.device)
    return (1 - 0.10 * (x.square() + y.square()).square() / 2).to(like.dtype)


def _quantize(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Frames in [0, 1] as uint8, or as floats in [-1, 1]."""
    frames = frames.clamp_(0, 1)
    if dtype == torch.uint8:
        return frames.mul_(255).add_(0.5).to(torch.uint8)
    return frames.mul_(2).sub_(1).to(dtype)
