"""The postcard renderer: repeatable, endless, of any size, and true to the scene."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import pytest
import torch

from scripts.postcard import motion
from scripts.postcard.grammar import ATTRIBUTES, Scene
from scripts.postcard.render import render, render_indices

BASE = Scene("meadow", "noon", "clear", "hot air balloon", "red", "hovers", "still")
HUES = {"red": 0, "orange": 28, "yellow": 53, "green": 132, "blue": 228, "purple": 277, "pink": 328}


def test_shape_type_and_range() -> None:
    scenes = [replace(BASE, place=place) for place in ATTRIBUTES["place"]]
    video = render(scenes, frames=2, height=64, width=64, seed=0)
    assert video.shape == (8, 2, 3, 64, 64)
    assert video.dtype == torch.uint8
    floats = render(scenes, frames=2, height=64, width=64, seed=0, dtype=torch.float32)
    assert floats.min() >= -1 and floats.max() <= 1
    assert ((floats + 1) * 127.5 - video).abs().max() <= 0.51


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 112), (112, 64)])
def test_other_sizes_show_the_same_kind_of_picture(height: int, width: int) -> None:
    video = render([BASE], frames=2, height=height, width=width, seed=0).float()
    assert video.shape == (1, 2, 3, height, width)
    top, bottom = video[0, 0, :, : height // 8].mean((1, 2)), video[0, 0, :, -height // 8 :].mean((1, 2))
    assert top[2] > top[0], "the sky is blue"
    assert bottom[1] > bottom[2], "the meadow is green"


def test_seed_settles_everything() -> None:
    scenes = [BASE, replace(BASE, place="lake", weather="rain", camera="sways")]
    one, two, other = (render(scenes, frames=3, height=64, width=64, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert (one.float() - other.float()).abs().mean() > 3


@pytest.mark.parametrize("weather", ATTRIBUTES["weather"])
def test_clip_may_start_anywhere(weather: str) -> None:
    scenes = [
        replace(BASE, place="island", weather=weather, motion="drifts left", camera="pans right", subject="bird"),
        replace(BASE, place="city", weather=weather, motion="circles", camera="sways", subject="kite"),
    ]
    whole = render(scenes, frames=20, height=64, width=64, seed=7)
    later = render(scenes, frames=4, height=64, width=64, seed=7, start_time=1.0)
    assert torch.equal(whole[:, 16:], later)


def test_batch_is_grouped_without_mixing_clips_up() -> None:
    """A clip's numbers come from its row, so neighbours of other classes must not change it."""
    scenes = [
        replace(BASE, place=p, weather=w) for p, w in zip(ATTRIBUTES["place"], ATTRIBUTES["weather"] * 2, strict=False)
    ]
    changed = [replace(scene, subject="bird", place="city") if i % 2 else scene for i, scene in enumerate(scenes)]
    one, two = (render(batch, frames=2, height=64, width=64, seed=3) for batch in (scenes, changed))
    assert torch.equal(one[::2], two[::2])
    assert not torch.equal(one[1::2], two[1::2])


def test_indices_and_scenes_agree() -> None:
    indices = torch.tensor([BASE.indices()])
    one = render_indices(indices, frames=2, height=64, width=64, seed=0)
    assert torch.equal(one, render([BASE], frames=2, height=64, width=64, seed=0))


def _subject_only(scene: Scene, time: float = 0.0, frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames [T, 3, H, W], and where [T, H, W] the colour of the subject matters: the mask of the subject."""
    other = "blue" if scene.colour in ("red", "orange", "pink", "yellow", "white") else "yellow"
    pair = (scene, replace(scene, colour=other))
    video, recoloured = (render([s], frames=frames, seed=11, start_time=time)[0] for s in pair)
    return video.float(), (video.float() - recoloured.float()).abs().amax(1) > 25


@pytest.mark.parametrize("colour", ATTRIBUTES["colour"])
@pytest.mark.parametrize("time", ["noon", "night"])
def test_subject_shows_its_colour(colour: str, time: str) -> None:
    for weather in ("clear", "fog"):
        video, mask = _subject_only(replace(BASE, colour=colour, time=time, weather=weather))
        assert mask.sum() > 150
        red, green, blue = (video[0][:, mask[0]].median(dim=1).values / 255).tolist()
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        assert value > 0.45
        if colour == "white":
            assert saturation < 0.2 and value > 0.6
        else:
            off = (hue * 360 - HUES[colour] + 180) % 360 - 180
            assert abs(off) < 14, (hue * 360, colour)
            assert saturation > 0.35


@pytest.mark.parametrize("subject", ATTRIBUTES["subject"])
def test_subject_is_large_enough(subject: str) -> None:
    _, mask = _subject_only(replace(BASE, subject=subject))
    rows = mask[0].any(1).nonzero()
    assert rows.max() - rows.min() >= 14
    assert mask.sum() > 180


@pytest.mark.parametrize(("name", "sign"), [("drifts left", -1), ("drifts right", 1)])
@pytest.mark.parametrize("camera", ["still", "pans left", "pans right"])
def test_drift_goes_its_way_whatever_the_camera_does(name: str, sign: int, camera: str) -> None:
    _, mask = _subject_only(replace(BASE, motion=name, camera=camera), time=1.5, frames=9)
    column = torch.arange(mask.shape[-1])
    places = [(m.float().sum(0) * column).sum() / m.sum() for m in mask[::4] if m.sum() > 100]
    assert len(places) >= 2
    assert (places[-1] - places[0]) * sign > 4


def test_pan_moves_the_scenery_the_other_way() -> None:
    for camera, sign in (("pans left", 1), ("pans right", -1)):
        video = render([replace(BASE, place="city", camera=camera)], frames=2, seed=2)[0].float().mean(1)
        ground = video[:, 100:124]
        errors = {s: (ground[1, :, 8:-8] - ground[0].roll(s, 1)[:, 8:-8]).abs().mean() for s in range(-5, 6)}
        assert min(errors, key=lambda s: errors[s]) * sign > 0


def _paths(name: str, camera: str = "still") -> motion.Path:
    random = torch.rand(64, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kinds = [ATTRIBUTES["motion"].index(name)] * 64, [ATTRIBUTES["camera"].index(camera)] * 64
    times = torch.arange(16 * 40, dtype=torch.float64) / 16
    return motion.path(*kinds, random, times, 1.0, torch.full((64, 1), 0.12, dtype=torch.float64))


def test_drifting_subject_is_hardly_ever_away() -> None:
    away = (_paths("drifts left").x + 0.12 < 0) | (_paths("drifts left").x - 0.12 > 1)
    longest = max(len(run) for row in away.int().tolist() for run in "".join(map(str, row)).split("0"))
    assert longest / 16 < 0.5


@pytest.mark.parametrize("name", ["bobs up and down", "circles", "hovers"])
def test_staying_subject_stays_in_the_picture(name: str) -> None:
    path = _paths(name)
    assert path.x.min() > 0.12 and path.x.max() < 0.88
    assert path.y.min() > 0.12 and path.y.max() < 0.75
    wide, tall = path.x.amax(1) - path.x.amin(1), path.y.amax(1) - path.y.amin(1)
    assert (wide > 0.25).all() == (name == "circles") and (tall > 0.2).all() == (name != "hovers")
    assert name != "hovers" or max(wide.max(), tall.max()) < 0.02


def test_camera_paths() -> None:
    assert (_paths("hovers", "still").camera.diff(dim=1) == 0).all()
    for name, sign in (("pans left", -1), ("pans right", 1)):
        speed = _paths("hovers", name).camera.diff(dim=1) * 16 * 128 * sign
        assert speed.min() > 29.9 and speed.max() < 45.1
    sway = _paths("hovers", "sways").camera
    assert (sway.amax(1) - sway.amin(1)).min() > 15 / 128 and (sway.amax(1) - sway.amin(1)).max() < 25 / 128
