"""Which layers are left unquantized."""

from hypothesis import given
from hypothesis import strategies as st

from rtgen.quantize.sensitivity import Measured, most_sensitive

layers = st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1)), min_size=1, max_size=30).map(
    lambda pairs: [Measured(f"layer{index}", *pair) for index, pair in enumerate(pairs)]
)


def test_the_greatest_loss_a_weight_comes_first_and_what_does_not_fit_is_passed_over():
    measured = [Measured("large", 900, 9.0), Measured("worst", 60, 0.9), Measured("mild", 40, 0.01)]
    assert most_sensitive(measured, 0.10) == {"worst": 1, "mild": 3}
    assert most_sensitive(measured, 0.05) == {"mild": 3}
    assert most_sensitive(measured, 0.01) == {}


@given(layers, st.floats(0.01, 0.99))
def test_the_share_is_never_exceeded_and_ranks_follow_the_loss(measured, at_most):
    kept = most_sensitive(measured, at_most)
    sizes = {layer.name: layer.elements for layer in measured}
    assert sum(sizes[name] for name in kept) <= at_most * sum(sizes.values()) + 1e-6
    by_rank = sorted(measured, key=lambda layer: -layer.loss / layer.elements)
    density = {layer.name: layer.loss / layer.elements for layer in measured}
    for name, rank in kept.items():
        assert density[by_rank[rank - 1].name] == density[name]
