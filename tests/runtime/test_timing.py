import pytest

from rtgen.runtime.timing import REMEMBERED_CHUNKS, ChunkClock, StageTimes


def test_the_first_chunks_delay_is_no_part_of_the_steady_speed():
    clock = ChunkClock()
    for index in range(5):
        clock.tick(10.0 + 0.5 * index, 12)
    assert (clock.first_s, clock.steady_fps) == (10.0, 24.0)
    assert (clock.jitter_p95, clock.jitter_max) == (1.0, 1.0)


def test_jitter_is_a_share_of_the_median_and_one_hiccup_in_forty_shows_in_the_longest_only():
    clock, now = ChunkClock(), 0.0
    for index in range(41):
        now += 2.0 if index == 20 else 0.5
        clock.tick(now, 12)
    assert (clock.jitter_p95, clock.jitter_max) == (1.0, 4.0)


def test_too_few_chunks_have_no_speed_and_no_jitter():
    clock = ChunkClock()
    assert (clock.first_s, clock.steady_fps, clock.jitter_p95) == (None, None, None)
    clock.tick(1.0, 12)
    assert clock.steady_fps is None
    clock.tick(2.0, 6)
    assert (clock.steady_fps, clock.jitter_max) == (6.0, None)


def test_the_memory_of_gaps_is_bounded():
    clock = ChunkClock()
    for index in range(REMEMBERED_CHUNKS + 500):
        clock.tick(float(index), 12)
    assert len(clock._gaps) == REMEMBERED_CHUNKS and clock.steady_fps == 12


def test_the_loop_is_denoising_alone():
    times = StageTimes()
    assert times.loop_fps is None
    times.add(0.5, 1.0, 12)
    times.add(0.25, 1.0, 12)
    assert times.loop_fps == pytest.approx(32.0) and times.decode_s == 2.0
