"""PSNR, SSIM and drift on pictures whose answers are known."""

import math

import numpy as np
import pytest

pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from rtgen.fidelity import metrics


def noisy(seed=0, frames=2, height=24, width=32):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def smooth(frames=2, height=32, width=40):
    """A gradient with a soft blob that moves."""
    y, x = np.mgrid[:height, :width] / 40
    pictures = [128 + 90 * np.sin(4 * x + frame / 3) * np.cos(3 * y) for frame in range(frames)]
    return np.stack([np.stack([p, 255 - p, p / 2], axis=-1) for p in pictures]).astype(np.uint8)


def test_psnr_of_a_constant_offset_is_the_textbook_value():
    reference = np.full((3, 8, 8, 3), 100, np.uint8)
    errors = metrics.squared_errors(reference + np.uint8(5), reference)
    assert errors.tolist() == [25.0, 25.0, 25.0]
    assert metrics.psnr(float(errors.mean())) == pytest.approx(10 * math.log10(255**2 / 25))


def test_equal_clips_have_no_finite_psnr_and_full_similarity():
    clip = smooth()
    assert metrics.squared_errors(clip, clip).max() == 0 and metrics.psnr(0.0) == math.inf
    assert metrics.similarities(clip, clip) == pytest.approx(1.0)


def test_differences_of_both_signs_count_and_do_not_wrap_around():
    dark, bright = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert metrics.squared_errors(dark, bright)[0] == metrics.squared_errors(bright, dark)[0] == 255**2


def test_ssim_is_that_of_scikit_image():
    structural = pytest.importorskip("skimage.metrics").structural_similarity
    reference = smooth(frames=3)
    rough = np.random.default_rng(1).normal(0, 12, reference.shape)
    candidate = np.clip(reference + rough, 0, 255).astype(np.uint8)
    wanted = [
        structural(
            one, other, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1
        )
        for one, other in zip(candidate, reference, strict=True)
    ]
    assert metrics.similarities(candidate, reference) == pytest.approx(wanted, abs=2e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_ssim_is_symmetric_and_falls_with_more_noise(seed, strength):
    reference = smooth(frames=1)
    rough = np.random.default_rng(seed).normal(0, strength, reference.shape)
    less, more = (np.clip(reference + share * rough, 0, 255).astype(np.uint8) for share in (0.5, 1.5))
    near, far = metrics.similarities(less, reference)[0], metrics.similarities(more, reference)[0]
    assert far <= near <= 1
    assert metrics.similarities(reference, less)[0] == pytest.approx(near, abs=1e-6)


def test_many_frames_are_compared_as_each_would_be_alone():
    one, other = noisy(0, frames=19), noisy(1, frames=19)
    whole = metrics.similarities(one, other)
    alone = [metrics.similarities(one[n : n + 1], other[n : n + 1])[0] for n in range(19)]
    assert whole == pytest.approx(alone, abs=1e-6)


def test_clips_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        metrics.squared_errors(noisy(frames=2), noisy(frames=3))
    with pytest.raises(ValueError, match="without frames"):
        metrics.squared_errors(noisy()[:0], noisy()[:0])
    with pytest.raises(ValueError, match="at least 11x11"):
        metrics.similarities(noisy(height=8), noisy(height=8))


@pytest.mark.parametrize(
    ("colour", "lab"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_mean_colour_is_cielab_under_daylight(colour, lab):
    frames = np.broadcast_to(np.array(colour, np.uint8), (2, 3, 3, 3))
    assert metrics.mean_colour(frames) == pytest.approx(lab, abs=0.05)


def test_blur_takes_detail_away():
    sharp = noisy(height=20, width=20).astype(np.float64)
    blurred = (sharp + np.roll(sharp, 1, 1) + np.roll(sharp, 1, 2)) / 3
    ratio = metrics.detail(blurred.astype(np.uint8)) / metrics.detail(sharp.astype(np.uint8))
    assert 0.2 < ratio < 0.8
