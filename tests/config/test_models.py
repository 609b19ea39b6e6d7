"""The shipped models say what their publishers' configs say."""

import pytest

from rtgen.config.load import load_model
from rtgen.runtime.schedule import sigmas

SELF_FORCING, LONGLIVE = "wan2.1-1.3b-self-forcing", "longlive-1.3b"


def test_longlive_is_self_forcings_architecture_with_a_short_window_and_a_sink() -> None:
    base, longlive = load_model(SELF_FORCING).model_dump(), load_model(LONGLIVE).model_dump()
    different = {name for name in base if base[name] != longlive[name]}
    assert different == {"name", "title", "cache", "weights"}
    cache = load_model(LONGLIVE).cache
    assert (cache.chunk, cache.window, cache.sink, cache.position_limit) == (3, 12, 3, 1024)
    assert load_model(LONGLIVE).weights.published == "longlive"


@pytest.mark.parametrize("name", [SELF_FORCING, LONGLIVE])
def test_the_steps_are_the_published_ones_warped(name: str) -> None:
    schedule = load_model(name).schedule
    found = [1000 * sigma for sigma in sigmas(schedule.timesteps, schedule.shift)]
    assert found == pytest.approx([1000, 937.5, 833.333, 625], abs=1e-3)


@pytest.mark.parametrize(("name", "decoders"), [("postcard", ("vae",)), (LONGLIVE, ("taehv", "vae"))])
def test_published_models_offer_both_decoders_and_others_their_own(name: str, decoders: tuple[str, ...]) -> None:
    assert load_model(name).decoders == decoders
