"""LPIPS through any network, and a reason where there is none."""

import sys
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from rtgen.fidelity import perceptual
from rtgen.fidelity.perceptual import NotMeasuredError, distances, load_network


def stand_in(one, other):
    """The mean difference of features of a small convolution, in LPIPS's shapes: [N, 3, H, W] twice to [N, 1, 1, 1]."""
    assert one.dtype == torch.float32 and one.min() >= -1 and one.max() <= 1
    weights = torch.linspace(-1, 1, 4 * 3 * 9).reshape(4, 3, 3, 3)
    features = (torch.nn.functional.conv2d(part, weights).relu() for part in (one, other))
    first, second = features
    return (first - second).square().mean(dim=(1, 2, 3), keepdim=True)


def clip(seed, frames=9):
    return np.random.default_rng(seed).integers(0, 256, (frames, 12, 12, 3), dtype=np.uint8)


def test_every_fourth_pair_of_frames_has_a_distance():
    found = distances(stand_in, clip(0), clip(1))
    assert found.shape == (3,) and (found > 0).all()
    alone = [distances(stand_in, clip(0)[n : n + 1], clip(1)[n : n + 1])[0] for n in (0, 4, 8)]
    assert found == pytest.approx(alone)


def test_equal_frames_have_none_and_long_clips_go_in_parts():
    long = clip(2, frames=100)
    assert distances(stand_in, long, long) == pytest.approx(np.zeros(25))


def test_without_the_package_it_is_not_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(NotMeasuredError, match="lpips is not installed"):
        load_network()


def test_weights_are_never_fetched(monkeypatch, tmp_path):
    package = ModuleType("lpips")
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(NotMeasuredError, match="weights of the network not present"):
        load_network()  # the package is not even asked, or it would have had no LPIPS


def test_present_weights_are_used(monkeypatch, tmp_path):
    class Lpips(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert (net, verbose) == ("alex", False)

        def forward(self, one, other):
            return stand_in(one, other)

    package = ModuleType("lpips")
    package.LPIPS = Lpips
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / perceptual.BACKBONE).touch()
    assert distances(load_network(), clip(0), clip(1)).mean() > 0
