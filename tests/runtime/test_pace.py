"""The schedule of real time, on a clock that only moves when someone waits or works."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtgen.runtime.adaptive import PassCount
from rtgen.runtime.pace import MOST_BUDGET, RealTime
from rtgen.runtime.player import play
from rtgen.runtime.timing import StageTimes

RATE, CHUNK = 16, 12
PERIOD = CHUNK / RATE


class Clock:
    def __init__(self):
        self.now, self.slept = 100.0, 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert 0 < seconds <= 0.1 + 1e-9  # Ctrl-C arrives between waits
        self.now += seconds
        self.slept += seconds


def paced(costs, budget=0.0):
    """Play chunks that take ``costs(budget)`` seconds each; a list of (time, budget, dropped), and the schedule."""
    clock = Clock()
    pace, log = RealTime(RATE, budget, clock=clock, sleep=clock.sleep), []
    for cost in costs:
        asked = pace.budget
        clock.now += cost(asked) if callable(cost) else cost
        dropped = pace.release(CHUNK)
        log.append((clock.now, asked, dropped))
    return log, pace, clock


def test_chunks_are_released_at_the_models_rate_and_nothing_is_shed():
    log, pace, clock = paced([0.3] * 6)
    times = [time for time, *_ in log]
    assert times == pytest.approx([times[0] + PERIOD * index for index in range(6)])
    assert clock.slept == pytest.approx(5 * (PERIOD - 0.3))
    assert {budget for _, budget, _ in log} == {0.0} and pace.dropped_frames == 0


def test_a_model_that_keeps_up_with_fewer_passes_drops_no_frame():
    costs = [lambda budget: 0.95 if budget < MOST_BUDGET else 0.5] * 30
    log, pace, _ = paced(costs)
    budgets = [budget for _, budget, _ in log]
    assert max(budgets) == MOST_BUDGET and pace.dropped_frames == 0 and pace.paused_s == 0
    lateness = [time - log[0][0] - PERIOD * index for index, (time, *_) in enumerate(log)]
    assert max(lateness[10:]) < PERIOD  # it does not grow


def test_the_budget_rises_within_its_limits_and_falls_again():
    log, pace, _ = paced([0.1, *[0.8] * 8, *[0.05] * 60], budget=0.01)
    budgets = [budget for _, budget, _ in log]
    assert budgets[0] == 0.01 and max(budgets) == MOST_BUDGET and pace.budget == 0.01
    rising = budgets[: budgets.index(MOST_BUDGET) + 1]
    assert rising == sorted(rising) and len(set(rising)) >= 4


def test_frames_are_dropped_only_when_no_more_passes_can_be_shed_and_only_late_ones():
    stall = [0.1] * 3 + [0.85] * 7 + [0.7, 0.1, 0.1] * 4
    log, pace, _ = paced(stall)
    first = next(index for index, (*_, dropped) in enumerate(log) if dropped)
    assert [budget for _, budget, _ in log][first - 1 : first + 1] == [MOST_BUDGET] * 2
    assert pace.dropped_frames == sum(dropped for *_, dropped in log) and pace.paused_s == 0
    assert log[-1][2] == 0  # caught up
    for index, (time, _, dropped) in enumerate(log):
        late = time - log[0][0] - PERIOD * index
        assert dropped == 0 or dropped == int(late * RATE + 1e-6) < CHUNK


def test_a_model_that_cannot_hold_the_rate_pauses_instead_of_showing_nothing():
    log, pace, _ = paced([1.2] * 40)
    assert pace.paused_s > 0 and pace.dropped_frames > 0
    assert sum(CHUNK - dropped for *_, dropped in log) > 40 * CHUNK / 2


def test_an_error_budget_above_the_limit_is_kept():
    _, pace, _ = paced([2.0] * 5, budget=0.5)
    assert pace.budget == 0.5


@given(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60), st.floats(0, 0.5))
def test_whatever_chunks_take_none_is_early_or_empty_and_the_budget_stays_in_its_limits(costs, budget):
    log, pace, _ = paced(costs, budget)
    for index, (time, asked, dropped) in enumerate(log):
        assert time - log[0][0] >= PERIOD * index - 1e-6
        assert budget <= asked <= max(budget, MOST_BUDGET) and 0 <= dropped < CHUNK
    assert pace.dropped_frames == sum(dropped for *_, dropped in log)


class TimedPipeline:
    """A stand-in whose chunks take as long as the budget says; frames carry their number."""

    backend_name, device, overlaps, warnings = "onnxruntime", "CPU", False, ()

    def __init__(self, clock, cost):
        model = SimpleNamespace(default_size=(16, 16), frames_per_second=RATE)
        self.manifest = SimpleNamespace(model=model, target=SimpleNamespace(compute_capability=None))
        self.passes, self.times = PassCount(levels=4), StageTimes()
        self.clock, self.cost = clock, cost

    def stream(self, prompt, *, seed, frames, size, error_budget, adaptive):
        assert adaptive
        self.error_budget = error_budget
        for first in range(0, frames, CHUNK):
            passes = 4 if self.error_budget < MOST_BUDGET else 2
            self.clock.now += self.cost(first // CHUNK, passes)
            self.passes.chunks += 1
            self.passes.passes += passes
            numbers = np.arange(first, min(first + CHUNK, frames), dtype=np.uint8)
            yield np.broadcast_to(numbers[:, None, None, None], (len(numbers), 16, 16, 3))


def test_a_late_run_says_what_it_shed_and_dropped_and_keeps_the_time_of_the_rest(tmp_path):
    import av

    clock = Clock()
    pipeline = TimedPipeline(clock, lambda chunk, passes: 0.45 * passes if chunk < 8 else 0.05)
    pace = RealTime(RATE, clock=clock, sleep=clock.sleep)
    folder = tmp_path / "frames"
    summary = play(pipeline, f"{folder}/", "a boat", 0, 12 * CHUNK, None, lambda *_: None, pace=pace)
    assert summary.shed_passes == 48 - pipeline.passes.passes > 0
    assert summary.dropped_frames > 0 and summary.frames == 12 * CHUNK - summary.dropped_frames
    kept = sorted(folder.iterdir())
    assert len(kept) == summary.frames
    for file in kept:  # each frame that is left has its own number, so its own time
        with av.open(str(file)) as image:
            assert next(image.decode(video=0)).to_ndarray(format="rgb24")[0, 0, 0] == int(file.stem)
