"""The rotary position embedding: the toolchain's tables and the runtime's are the same, and mean what they should."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtgen.models import rope  # noqa: E402
from rtgen.runtime.rope import axis_table  # noqa: E402

POSITIONS = [0, 1, 2, 17, 999, 30_000]


@pytest.mark.parametrize(("channels", "theta"), [(4, 10000.0), (22, 10000.0), (21, 500.0), (1, 10000.0)])
def test_the_tables_are_those_of_the_runtime(channels, theta):
    ours = rope.axis_table(torch.tensor(POSITIONS), channels, theta).numpy()
    runtime = axis_table(np.array(POSITIONS), channels, theta)
    assert ours.dtype == runtime.dtype == np.float32
    np.testing.assert_allclose(ours, runtime, atol=1e-7)


def test_rotation_is_multiplication_by_unit_complex_numbers_of_each_token():
    split, (frames, rows, columns) = (4, 3, 3), (2, 3, 4)
    starts = (7, 0, 0)
    places = [torch.arange(start, start + size) for start, size in zip(starts, (frames, rows, columns), strict=True)]
    tables = tuple(rope.axis_table(place, count, 100.0) for place, count in zip(places, split, strict=True))
    x = torch.randn(2, frames * rows * columns, 2, 2 * sum(split))
    turned = rope.rotate(x, rope.token_rotation(tables))

    angles = []
    for frame in places[0].tolist():
        for row in range(rows):
            for column in range(columns):
                place = zip((frame, row, column), split, strict=True)
                angles.append([p * 100.0 ** (-k / count) for p, count in place for k in range(count)])
    unit = torch.polar(torch.ones(len(angles), sum(split), dtype=torch.float64), torch.tensor(angles).double())
    expected = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * unit[None, :, None]
    torch.testing.assert_close(turned.double(), torch.view_as_real(expected).flatten(-2), atol=1e-5, rtol=0)


def test_scores_depend_on_the_distance_in_time_alone():
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(at, other):
        turn = [rope.axis_table(torch.tensor([place]), 4, 10000.0) for place in (at, other)]
        return (rope.rotate(query, turn[0]) * rope.rotate(key, turn[1])).sum()

    torch.testing.assert_close(score(5, 2), score(4005, 4002), atol=2e-3, rtol=0)
