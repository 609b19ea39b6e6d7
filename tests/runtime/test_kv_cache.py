import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtgen.runtime.kv_cache import RingLayout

layouts = st.builds(
    lambda chunk, sink, rest: RingLayout(window=(sink + rest) * chunk, sink=sink * chunk, chunk=chunk),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 8),
)


@given(layouts, st.integers(1, 40))
def test_the_ring_holds_the_sink_and_the_most_recent_frames(layout, chunks):
    ring: list[int | None] = [None] * layout.window
    for index in range(chunks):
        start = layout.slot(index)
        assert 0 <= start <= layout.window - layout.chunk
        frames = list(range(index * layout.chunk, (index + 1) * layout.chunk))
        ring[start : start + layout.chunk] = frames
        held = [frame for frame in ring[: layout.length(index)] if frame is not None]
        assert len(held) == layout.length(index)
        seen = list(range((index + 1) * layout.chunk))
        recent = seen[layout.sink :][-(layout.window - layout.sink) :]
        assert sorted(held) == seen[: layout.sink] + recent


def test_longlive_keeps_three_of_twelve_frames():
    layout = RingLayout(window=12, sink=3, chunk=3)
    assert [layout.slot(index) for index in range(8)] == [0, 3, 6, 9, 3, 6, 9, 3]
    assert [layout.length(index) for index in range(6)] == [3, 6, 9, 12, 12, 12]


@pytest.mark.parametrize(("window", "sink", "chunk"), [(10, 0, 3), (12, 2, 3), (3, 3, 3), (3, 0, 0), (6, -3, 3)])
def test_a_layout_that_would_straddle_or_overflow_is_refused(window, sink, chunk):
    with pytest.raises(ValueError, match="window"):
        RingLayout(window, sink, chunk)
