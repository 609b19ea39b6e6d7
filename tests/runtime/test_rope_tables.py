import numpy as np

from rtgen.runtime.rope import axis_table


def test_the_tables_are_those_of_wan():
    # Wan 2.1: rope_params(1024, d - 4 * (d // 6)) for time, with d = 128.
    dimension = 44
    frequencies = 1.0 / 10000.0 ** (np.arange(0, dimension, 2, dtype=np.float64) / dimension)
    expected = np.exp(1j * np.outer(np.arange(1024), frequencies))
    table = axis_table(np.arange(1024), dimension // 2)
    assert table.shape == (1024, 22, 2)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table[..., 0] + 1j * table[..., 1], expected, atol=1e-7)


def test_far_positions_stay_exact():
    far = axis_table(np.array([100_000]), 1)
    np.testing.assert_allclose(far[0, 0], [np.cos(100_000.0), np.sin(100_000.0)], atol=1e-7)
