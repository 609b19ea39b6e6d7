"""The attribute classifier: repeatable, symmetric, and honest about what was read."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from scripts.postcard import classifier
from scripts.postcard.classifier import CLIP_FRAMES, GAP, PAIRS, PIXELS, Classifier
from scripts.postcard.grammar import ATTRIBUTES, Scene, held_out_scenes
from scripts.postcard.render import render


def numbered_clip(frames: int, height: int = 8, width: int = 8) -> Tensor:
    """A clip [1, T, 3, H, W] whose every pixel is the number of its frame."""
    return torch.arange(frames, dtype=torch.uint8)[None, :, None, None, None].expand(1, frames, 3, height, width)


@pytest.mark.parametrize("jitter", [-2, 0, 2])
def test_pairs_span_the_clip_and_are_the_gap_apart(jitter: int) -> None:
    pairs = classifier.sample_pairs(numbered_clip(CLIP_FRAMES), classifier.pair_starts(jitter), GAP)
    assert pairs.shape == (1, PAIRS, 2, 3, PIXELS, PIXELS)
    frames = (pairs[0, :, :, 0, 0, 0] * 255).round()
    assert (frames[:, 1] - frames[:, 0] == GAP).all()
    assert frames.min() <= 2 and frames.max() >= CLIP_FRAMES - 3


def test_a_short_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="80 frames, not 79"):
        classifier.sample_pairs(numbered_clip(79), classifier.pair_starts(), GAP)


def test_training_draws_are_settled_by_the_seed() -> None:
    item = {"pixels": torch.randint(256, (3, CLIP_FRAMES, 3, PIXELS, PIXELS), dtype=torch.uint8)}
    item["where"] = torch.rand(3, CLIP_FRAMES, 2)
    item["labels"] = torch.tensor([scene.indices() for scene in held_out_scenes(3, seed=1)])
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(classifier.training_batch(item))
    assert all(torch.equal(one, other) for one, other in zip(*draws, strict=True))
    assert draws[0][0].min() >= 0 and draws[0][0].max() <= 1


def test_a_mirrored_clip_moves_the_other_way() -> None:
    scenes = [
        Scene("lake", "noon", "clear", "kite", "red", motion, camera)
        for motion, camera in itertools.product(ATTRIBUTES["motion"], ATTRIBUTES["camera"])
    ]
    pairs = torch.rand(len(scenes), PAIRS, 2, 3, 4, 4)
    labels, everyone = torch.tensor([scene.indices() for scene in scenes]), torch.ones(len(scenes), dtype=torch.bool)
    where = torch.tensor([0.25, 0.5]).expand(len(scenes), PAIRS, 2)
    flipped, turned, moved = classifier.mirror(pairs, labels, where, everyone)
    assert torch.equal(flipped, pairs.flip(-1))
    assert (moved == torch.tensor([0.75, 0.5])).all()
    swap = {"drifts left": "drifts right", "pans left": "pans right"}
    swap |= {after: before for before, after in swap.items()}
    for scene, row in zip(scenes, turned.tolist(), strict=True):
        found = Scene.from_indices(tuple(row))
        assert found.motion == swap.get(scene.motion, scene.motion)
        assert found.camera == swap.get(scene.camera, scene.camera)
    assert torch.equal(classifier.mirror(flipped, turned, moved, everyone)[1], labels)
    assert torch.equal(classifier.mirror(pairs, labels, where, ~everyone)[1], labels)


def test_speeds_follow_the_camera() -> None:
    clips = [Scene("forest", "noon", "clear", "kite", "red", "hovers", camera) for camera in ATTRIBUTES["camera"]]
    video = render(clips, frames=CLIP_FRAMES, height=PIXELS, width=PIXELS, seed=1)
    pairs = classifier.sample_pairs(video, classifier.pair_starts(), GAP)
    found = classifier.speeds(pairs.flatten(2, 3).flatten(0, 1))
    assert found.shape == (len(clips) * PAIRS, 4, PIXELS // 2, PIXELS // 2)
    across = dict(
        zip(ATTRIBUTES["camera"], found[:, 2].unflatten(0, (-1, PAIRS)).mean((1, 2, 3)).tolist(), strict=True)
    )
    assert across["pans left"] > 0.1 and across["pans right"] < -0.1 and abs(across["still"]) < 0.03


def test_the_gaze_is_drawn_to_the_subject() -> None:
    where = torch.tensor([0.3, 0.8]).expand(1, 1, 2)
    cells = torch.full((64, 1, 1, 8, 8), -9.0)
    cells.flatten(1)[range(64), range(64)] = 9.0
    losses = [float(classifier.gaze_loss(gaze, where)) for gaze in cells]
    assert int(np.argmin(losses)) == 6 * 8 + 2  # row 0.8 * 8, column 0.3 * 8
    assert classifier.gaze_loss(cells[0], where + 1) == 0


def test_coarsening_loses_detail_and_keeps_the_mean() -> None:
    picture = torch.rand(1, 1, 2, 3, 16, 16)
    fine, coarse = (classifier.coarsen(picture, torch.full((1, 1, 1, 1, 1, 1), step)) for step in (1e-4, 0.3))
    assert (fine - picture).abs().max() < 0.01
    assert (coarse - picture).abs().max() > 0.1
    assert coarse.mean() == pytest.approx(float(picture.mean()), abs=0.03)


def test_reading_gives_a_value_of_every_attribute_and_repeats() -> None:
    torch.manual_seed(0)
    model = Classifier().eval()
    video = render(held_out_scenes(2, seed=2), frames=CLIP_FRAMES, height=32, width=48, seed=3)
    answers = model.read(video)
    assert answers.shape == (2, len(ATTRIBUTES)) and answers.dtype == torch.int64
    assert all(Scene.from_indices(tuple(row)) for row in answers.tolist())
    assert torch.equal(answers, model.read(video))
    features = model.features(classifier.sample_pairs(video, classifier.pair_starts(), GAP))
    assert features.shape == (2, model.heads[0].in_features) and not torch.equal(features[0], features[1])


def test_training_writes_weights_and_its_own_accuracy(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(classifier, "_RENDERED_AT", (32, 32))
    monkeypatch.setattr(classifier, "_RENDERED_AT_ONCE", 2)
    classifier.train(tmp_path, minutes=0.01, batch=2, pool=2, held_out=2)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["held_out_clips"] == 2
    assert all(0 <= last[name] <= 1 for name in (*ATTRIBUTES, "mean"))
    classifier.load_classifier(tmp_path, torch.device("cpu"))
