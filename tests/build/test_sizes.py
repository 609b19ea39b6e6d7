"""From sizes that are asked for to profiles, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtgen.build.sizes import requested_profiles, sizes_of
from rtgen.config.load import load_model
from rtgen.errors import SizeError
from rtgen.runtime.profiles import pixels, serves

POSTCARD = load_model("postcard")
sides = st.integers(2, 30).map(lambda tokens: tokens * 16)
requests = st.lists(st.tuples(sides, sides), min_size=1, max_size=6)


@given(requests)
def test_every_size_asked_for_is_tuned_for_and_nothing_greater_is_served(asked):
    found = requested_profiles(POSTCARD, asked)
    assert {profile.opt for profile in found} == set(asked)
    assert all(profile.max == profile.opt for profile in found)
    assert max(pixels(profile.max) for profile in found) == max(map(pixels, asked))


@given(requests, st.data())
def test_a_size_between_two_that_were_asked_for_is_served(asked, data):
    first, second = (data.draw(st.sampled_from(asked)) for _ in range(2))
    low, high = ([fold(pair) for pair in zip(first, second, strict=True)] for fold in (min, max))
    if tuple(high) not in asked or tuple(low) not in asked:
        return  # such as portrait and landscape: what lies between them would be larger than both
    between = tuple(data.draw(st.integers(a // 16, b // 16)) * 16 for a, b in zip(low, high, strict=True))
    assert any(serves(profile, between) for profile in requested_profiles(POSTCARD, asked))


@given(requests, st.randoms())
def test_order_and_repetition_do_not_matter_and_profiles_lead_back_to_the_request(asked, random):
    found = requested_profiles(POSTCARD, asked)
    assert requested_profiles(POSTCARD, random.sample(asked, len(asked)) + asked) == found
    assert requested_profiles(POSTCARD, sizes_of(POSTCARD, found)) == found


def test_none_means_the_models_own():
    own = requested_profiles(POSTCARD, ())
    assert own == POSTCARD.resolution.profiles and sizes_of(POSTCARD, own) == ()


def test_one_size_is_exact():
    (profile,) = requested_profiles(POSTCARD, [(96, 160)])
    assert profile.min == profile.opt == profile.max == (96, 160)


def test_a_size_off_the_grid_is_refused_among_others():
    with pytest.raises(SizeError, match="100x96"):
        requested_profiles(POSTCARD, [(96, 96), (100, 96)])
