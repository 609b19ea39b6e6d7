"""Which noise levels adaptive steps choose, and that what they predict is what the samplers do."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtgen.errors import UsageError
from rtgen.runtime.adaptive import CAUTION, AdaptiveSteps, PassCount, checked_budget, skip_error

FOUR = (1.0, 0.9, 0.75, 0.5)
SAMPLERS = st.sampled_from(["euler", "renoise"])
LEVELS = st.lists(st.integers(1, 99), min_size=1, max_size=7, unique=True).map(
    lambda cents: (1.0, *(cent / 100 for cent in sorted(cents, reverse=True)))
)
CHANGES = st.floats(0, 3) | st.just(float("nan"))


def choose(steps, changes):
    """The levels of one chunk whose pass at level i reports ``changes[i]``."""
    chosen = [0]
    while (level := steps.after(chosen[-1], changes[chosen[-1]] if len(chosen) > 1 else None)) < len(changes):
        chosen.append(level)
    return chosen


def last_input(sigmas, sampler, way, noises):
    """The input of the last pass of ``way`` in the sampler itself, for an x0 that moves by 1 for a unit of sigma."""
    x = noises[way[0]]
    for level, following in pairwise(way):
        clean = 0.3 + (1.0 - sigmas[level])
        if sampler == "euler":
            x = x + (sigmas[following] - sigmas[level]) * (x - clean) / sigmas[level]
        else:
            x = (1 - sigmas[following]) * clean + sigmas[following] * noises[following]
    return x


@given(sigmas=LEVELS, sampler=SAMPLERS, data=st.data())
def test_the_predicted_error_is_what_leaving_levels_out_does_to_the_next_pass(sigmas, sampler, data):
    level = data.draw(st.integers(0, len(sigmas) - 2))
    following = data.draw(st.integers(level + 1, len(sigmas) - 1))
    noises = np.random.default_rng(0).standard_normal(len(sigmas))
    every = last_input(sigmas, sampler, range(following + 1), noises)
    short = last_input(sigmas, sampler, [*range(level + 1), following], noises)
    assert skip_error(sigmas, sampler, level, following) == pytest.approx(abs(every - short), abs=1e-9)


@given(sigmas=LEVELS, sampler=SAMPLERS, budget=st.floats(0, 1), data=st.data())
def test_first_and_last_level_always_run_and_what_is_predicted_stays_within_the_budget(sigmas, sampler, budget, data):
    steps, record = AdaptiveSteps(sigmas, sampler, budget), None
    for _ in range(4):
        changes = data.draw(st.lists(CHANGES, min_size=len(sigmas), max_size=len(sigmas)))
        chosen = choose(steps, changes)
        assert chosen[0] == 0 and chosen[-1] == len(sigmas) - 1 and chosen == sorted(set(chosen))
        spent, moved = 0.0, 0.0
        for before, level, following in zip([None, *chosen], chosen, chosen[1:], strict=False):
            rate = changes[level] / (sigmas[before] - sigmas[level]) if level else record and CAUTION * record
            if following > level + 1:
                spent += rate * skip_error(sigmas, sampler, level, following)
            moved += changes[following]
        assert spent <= budget * (1 + 1e-9)
        record = moved / (sigmas[0] - sigmas[-1])


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_a_still_chunk_needs_two_passes_once_the_one_before_was_still(sampler):
    steps, still, lively = AdaptiveSteps(FOUR, sampler, 0.05), [0.0, 0.02, 0.03, 0.05], [0.0, 0.3, 0.4, 1.2]
    assert choose(steps, still) == [0, 1, 3]  # nothing is known before the second pass
    assert choose(steps, lively) == [0, 3]  # what comes is seen one chunk late
    assert choose(steps, lively) == [0, 1, 2, 3]
    assert choose(steps, still) == [0, 1, 3]
    assert choose(steps, still) == [0, 3]
    steps.forget()
    assert choose(steps, still) == [0, 1, 3]


def test_a_budget_between_leaves_out_one_of_the_middle_levels():
    steps = AdaptiveSteps(FOUR, "euler", 0.015)
    changes = [0.0, 0.04, 0.05, 0.07]
    assert choose(steps, changes) == [0, 1, 2, 3]
    assert choose(steps, changes) == [0, 2, 3]


def test_an_estimate_that_is_not_a_number_saves_nothing():
    steps, broken = AdaptiveSteps(FOUR, "euler", 1e9), [float("nan")] * 4
    assert choose(steps, broken) == choose(steps, broken) == [0, 1, 2, 3]


@pytest.mark.parametrize("sigmas", [(1.0,), (1.0, 0.5)])
def test_a_schedule_without_a_middle_has_nothing_to_leave_out(sigmas):
    steps = AdaptiveSteps(sigmas, "euler", 1e9)
    for _ in range(3):
        assert choose(steps, [0.1] * len(sigmas)) == list(range(len(sigmas)))


@pytest.mark.parametrize("budget", [-0.1, float("nan"), float("inf"), -float("inf")])
def test_impossible_budgets_are_refused_with_one_that_works(budget):
    for refuse in (checked_budget, lambda value: AdaptiveSteps(FOUR, "euler", value)):
        with pytest.raises(UsageError, match="error budget must be 0 or more") as refused:
            refuse(budget)
        assert "0.05" in refused.value.hint


def test_passes_are_counted_by_chunk():
    count = PassCount(levels=4)
    assert (count.average, count.saved) == (4.0, 0.0)
    count.chunks, count.passes = 4, 10
    assert (count.average, count.saved) == (2.5, 0.375)
