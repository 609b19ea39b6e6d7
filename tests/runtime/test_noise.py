from statistics import NormalDist

import numpy as np
import pytest

from rtgen.runtime.noise import chunk_noise, inverse_normal

STORED_FIRST = [3222365837, 3207825978, 3214673803, 1042681933, 1002665095, 3205957692]
STORED_LAST = [3217032837, 3215555319, 3202489947, 3201494330]


def test_noise_has_the_stored_bits():
    # Stored bit patterns: a stream made on one machine must start the same on any other.
    assert chunk_noise(0, 0, 0, (6,)).view(np.uint32).tolist() == STORED_FIRST
    assert chunk_noise(2**63 - 1, 1000, 3, (2, 2)).view(np.uint32).ravel().tolist() == STORED_LAST


def test_noise_is_standard_normal():
    noise = chunk_noise(7, 1, 2, (4, 250, 250)).ravel()
    count = noise.size
    assert abs(noise.mean()) < 4 / count**0.5
    assert abs(noise.var() - 1) < 4 * (2 / count) ** 0.5
    cumulative = np.vectorize(NormalDist().cdf)(np.sort(noise)[::50])
    distance = np.abs(cumulative - np.arange(0, count, 50) / count).max()
    assert distance < 1.95 / count**0.5  # Kolmogorov-Smirnov at 0.1 %


@pytest.mark.parametrize("other", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1)])
def test_streams_of_other_seeds_chunks_and_steps_are_unrelated(other):
    first, second = chunk_noise(0, 0, 0, (40_000,)), chunk_noise(*other, (40_000,))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / 200
    # No shifted copy either: Philox counters of two streams must not overlap.
    assert np.intersect1d(first, second).size < 400


def test_quantiles_agree_with_the_standard_library_to_the_last_digits():
    probabilities = np.concatenate([np.linspace(1e-6, 1 - 1e-6, 2001), 2.0 ** -np.arange(2, 53)])
    expected = [NormalDist().inv_cdf(p) for p in probabilities]
    np.testing.assert_allclose(inverse_normal(probabilities), expected, rtol=4e-15, atol=1e-15)


@pytest.mark.parametrize("arguments", [(-1, 0, 0), (2**63, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must be in|count from"):
        chunk_noise(*arguments, (1,))
