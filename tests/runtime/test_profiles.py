"""Which profile serves a size, and which sizes are named when none does."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rtgen.config.load import load_model
from rtgen.engine.manifest import ProfileEntry
from rtgen.errors import SizeError
from rtgen.runtime.profiles import choose_profile, pixels, served_ranges, serves

STEP = (16, 16)
sides = st.integers(2, 40).map(lambda tokens: tokens * 16)
sizes = st.tuples(sides, sides)


@st.composite
def profiles(draw):
    corners = [draw(sizes) for _ in range(3)]
    heights, widths = (sorted(corner[axis] for corner in corners) for axis in (0, 1))
    low, best, high = zip(heights, widths, strict=True)
    return ProfileEntry(min=low, opt=best, max=high)


def choose(found, size):
    return choose_profile(found, {"rows": size[0] // STEP[0], "columns": size[1] // STEP[1]}, STEP)


def ratio(size, other):
    """How many times larger or smaller, at least 1, height and width taken together."""
    return max(size[0] / other[0], other[0] / size[0]) * max(size[1] / other[1], other[1] / size[1])


@given(st.lists(profiles(), min_size=1, max_size=6), sizes)
def test_the_profile_serves_the_size_and_none_that_does_is_tuned_nearer(found, size):
    serving = [profile for profile in found if serves(profile, size)]
    if not serving:
        with pytest.raises(SizeError, match=f"does not serve {size[0]}x{size[1]}"):
            choose(found, size)
        return
    chosen = found[choose(found, size)]
    nearest = min(ratio(profile.opt, size) for profile in serving)
    assert chosen in serving and ratio(chosen.opt, size) <= nearest * (1 + 1e-9)
    least = min(pixels(p.max) for p in serving if p.opt == chosen.opt)
    assert pixels(chosen.max) == least


@given(st.lists(profiles(), min_size=1, max_size=6), sizes, st.randoms())
def test_the_order_of_the_profiles_matters_only_among_equals(found, size, random):
    assume(any(serves(profile, size) for profile in found))
    shuffled = random.sample(found, len(found))
    first, second = found[choose(found, size)], shuffled[choose(shuffled, size)]
    assert ratio(first.opt, size) == pytest.approx(ratio(second.opt, size))


@given(st.lists(profiles(), min_size=1, max_size=6), st.data())
def test_a_size_that_a_profile_is_tuned_for_gets_such_a_profile(found, data):
    size = data.draw(st.sampled_from(found)).opt
    assert found[choose(found, size)].opt == size


@given(st.lists(profiles(), min_size=1, max_size=6), sizes)
def test_the_ranges_named_are_those_that_are_served(found, size):
    named = []
    for text in served_ranges(found).split(" or "):
        low, high = (text.split(" to ") * 2)[:2]
        named.append(ProfileEntry(min=low.split("x"), opt=low.split("x"), max=high.split("x")))
    assert any(serves(p, size) for p in named) == any(serves(p, size) for p in found)
    assert len(named) <= len(found)


def test_sizes_that_depend_on_no_frame_get_the_first_profile():
    assert choose_profile([], {"tokens": 12}, STEP) == 0


@pytest.mark.parametrize("name", ["wan2.1-1.3b-self-forcing", "longlive-1.3b"])
def test_one_package_of_the_480p_models_serves_three_sizes_upright_and_what_lies_between(name):
    model = load_model(name)
    found = model.resolution.profiles
    for size in ((320, 576), (480, 832), (576, 1024)):
        for turned in (size, size[::-1]):
            assert found[choose(found, turned)].opt == turned
    for size, opt in {(400, 704): (480, 832), (336, 592): (480, 832), (496, 800): (576, 1024)}.items():
        assert found[choose(found, size)].opt == opt
        assert found[choose(found, size[::-1])].opt == opt[::-1]
    with pytest.raises(SizeError) as refused:
        choose(found, (720, 1280))
    assert refused.value.hint == "it serves 320x576 to 576x1024 or 576x320 to 1024x576 (height x width)"
