"""Latents and frames in another size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtgen.runtime.resize import fitted, resized_latents

SIDES = st.integers(1, 13)


@settings(deadline=None)  # the first call imports torch
@given(height=SIDES, width=SIDES, size=st.tuples(SIDES, SIDES), seed=st.integers(0, 99))
def test_latents_are_interpolated_as_torch_does_it(height, width, size, seed):
    torch = pytest.importorskip("torch")
    latents = np.random.default_rng(seed).standard_normal((1, 4, 3, height, width)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(latents[0]), size, mode="bilinear")
    found = resized_latents(latents, size)
    assert found.dtype == np.float32 and found.shape == (1, 4, 3, *size)
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)


def test_latents_of_the_same_size_stay_as_they_are():
    latents = np.random.default_rng(0).standard_normal((1, 4, 3, 6, 5)).astype(np.float32)
    assert resized_latents(latents, (6, 5)) is latents


@settings(deadline=None)
@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 40)), size=st.tuples(st.integers(2, 40), st.integers(2, 40)))
def test_a_frame_keeps_its_shape_within_the_picture(shape, size):
    picture = fitted(np.full((*shape, 3), 200, np.uint8), size)
    assert picture.shape == (*size, 3) and picture.dtype == np.uint8
    filled = picture[:, :, 0] > 100
    rows, columns = filled.any(1).sum(), filled.any(0).sum()
    assert filled.sum() == rows * columns and (rows == size[0] or columns == size[1])
    scale = min(size[0] / shape[0], size[1] / shape[1])
    assert abs(rows - shape[0] * scale) <= 1 and abs(columns - shape[1] * scale) <= 1
