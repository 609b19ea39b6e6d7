"""Frames that are left out keep their time in the video."""

from fractions import Fraction

import av
import numpy as np
import pytest

from rtgen.runtime.sink import open_sink


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_the_frames_after_a_gap_come_at_their_time(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    with open_sink(str(path), frames_per_second=16, size=(64, 96)) as sink:
        sink.write(np.zeros((3, 64, 96, 3), np.uint8))
        sink.skip(5)
        sink.write(np.full((2, 64, 96, 3), 200, np.uint8))
    assert sink.frames == 5
    with av.open(str(path)) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    expected = [Fraction(number, 16) for number in (0, 1, 2, 8, 9)]
    assert [float(time - times[0]) for time in times] == pytest.approx([float(time) for time in expected], abs=0.001)


def test_a_closed_sink_skips_nothing(tmp_path):
    sink = open_sink(str(tmp_path / "clip.mp4"), frames_per_second=16, size=(64, 96))
    sink.abort()
    with pytest.raises(ValueError, match="closed"):
        sink.skip(1)
