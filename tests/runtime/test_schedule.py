import pytest

from rtgen.runtime.schedule import sigmas, warp


def test_self_forcing_steps_are_reproduced():
    warped = sigmas((1000, 750, 500, 250), 5)
    assert [round(1000 * sigma, 2) for sigma in warped] == [1000, 937.5, 833.33, 625]


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_a_shift_of_one_changes_nothing(sigma):
    assert warp(sigma, 1) == sigma


@pytest.mark.parametrize("timesteps", [(), (500, 1000), (1000, 0), (1000, 1000, 5), (1500, 200)])
def test_timesteps_that_do_not_descend_inside_the_range_are_refused(timesteps):
    with pytest.raises(ValueError, match="must"):
        sigmas(timesteps, 5)
