import numpy as np
import pytest

pytest.importorskip("polygraphy")

from rtgen.build.agreement import Agreement, compare

ONES = np.ones(1000, np.float32)


@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-3), ("float16", 2e-2)])
def test_differences_are_measured_against_the_tensors_magnitude(precision: str, limit: float) -> None:
    reference = np.array([8.0, 0.0], np.float32)
    for share, passes in ((0.9, True), (1.1, False)):
        candidate = np.array([8.0, 8.0 * limit * share], np.float32)
        agreement = compare("x", candidate, reference, precision)  # type: ignore[arg-type]
        assert agreement.passed is passes
        assert agreement.max_rel == pytest.approx(limit * share, rel=1e-5)
        assert agreement.max_abs == pytest.approx(8 * limit * share, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_fails_on_either_side(bad: float) -> None:
    broken = ONES.copy()
    broken[3] = bad
    assert not compare("x", broken, ONES, "float16").passed
    assert not compare("x", ONES, broken, "float16").passed
    assert not compare("x", broken, broken, "float16").passed


def test_equal_zeros_agree() -> None:
    assert compare("x", 0 * ONES, 0 * ONES, "float32") == Agreement(0.0, 0.0, True)


@pytest.mark.parametrize(
    ("differing", "by", "passes"),
    [(10_000, 2, True), (10_000, 3, False), (5, 200, True), (20, 200, False), (20, 16, True)],
)
def test_frames_may_differ_a_little_everywhere_or_much_in_one_value_of_a_thousand(
    differing: int, by: int, passes: bool
) -> None:
    reference = np.zeros(10_000, np.uint8)
    candidate = reference.copy()
    candidate[:differing] = by
    assert compare("frames", candidate, reference, "float32").passed is passes


def test_the_worst_of_two_keeps_nan_and_failures() -> None:
    fine, broken = Agreement(0.1, 0.2, True), Agreement(float("nan"), 0.1, False)
    for worst in (fine.worst(broken), broken.worst(fine)):
        assert np.isnan(worst.max_abs)
        assert (worst.max_rel, worst.passed) == (0.2, False)
