"""The memory plan adds up, and a refusal tells what would fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtgen.engine.manifest import ComponentEntry, MemoryPlan, StateEntry, TensorEntry
from rtgen.engine.memory_plan import CONTEXT_BYTES, GIB, activations_at, check, describe, estimate
from rtgen.errors import MemoryPlanError

SIZES = {"rows": 20, "columns": 36, "tokens": 64}


def tensor(name: str, dtype: str, *shape: int | str) -> TensorEntry:
    return TensorEntry(name=name, dtype=dtype, shape=shape)  # type: ignore[arg-type]


def component(inputs, outputs, states=()) -> ComponentEntry:
    return ComponentEntry(file="net.engine", inputs=inputs, outputs=outputs, states=states)


def package(update: str) -> dict[str, ComponentEntry]:
    ring = ("float16", 1, 12, "12*rows*columns", 128)
    return {
        "text_encoder": component([tensor("ids", "int64", 1, "tokens")], [tensor("text", "float16", 1, "tokens", 64)]),
        "denoiser": component(
            [tensor("x", "float16", 1, 16, 3, "2*rows", "2*columns"), tensor("k", *ring)],
            [tensor("velocity", "float16", 1, 16, 3, "2*rows", "2*columns"), tensor("k_new", *ring)],
            [StateEntry(input="k", output="k_new", update=update)],  # type: ignore[arg-type]
        ),
        "decoder": component(
            [tensor("past", "float32", 1, 8, 2, "rows", "columns")],
            [
                tensor("frames", "uint8", 12, "16*rows", "16*columns", 3),
                tensor("past_new", "float32", 1, 8, 2, "rows", "columns"),
            ],
            [StateEntry(input="past", output="past_new", update="swap")],
        ),
    }


def plan(
    update: str = "in_place", sizes: dict[str, int] = SIZES, vram: int = 8 * GIB, share: bool = True
) -> MemoryPlan:
    weights = {"text_encoder": 3, "denoiser": 2 * GIB, "decoder": 5}
    activations = {"text_encoder": 7, "denoiser": 11, "decoder": 13}
    return estimate(
        package(update), sizes, weights=weights, activations=activations, share_activations=share, vram=vram
    )


def test_each_term_is_counted_once():
    tokens = 20 * 36
    result = plan()
    assert result.kv_ring == 12 * 12 * tokens * 128 * 2
    assert result.decoder_state == 2 * 8 * 2 * tokens * 4
    assert result.io == 64 * 8 + 64 * 64 * 2 + 2 * (16 * 3 * 4 * tokens * 2) + 12 * 256 * tokens * 3
    assert result.weights == 2 * GIB + 8 and result.activations == 13
    assert result.context == CONTEXT_BYTES


def test_engines_that_may_overlap_take_the_sum_of_their_activations():
    assert plan(share=False).activations == 7 + 11 + 13


def test_a_ring_that_swaps_takes_twice_the_memory():
    assert plan("swap").kv_ring == 2 * plan("in_place").kv_ring


@given(st.integers(1, 200), st.integers(1, 200))
def test_terms_sum_to_the_total_and_never_shrink_with_the_frame(rows: int, columns: int):
    small = plan(sizes={**SIZES, "rows": rows, "columns": columns})
    large = plan(sizes={**SIZES, "rows": rows + 1, "columns": columns})
    assert sum(count for _, count in describe(small)) == small.total <= large.total
    counts = [count for _, count in describe(small)]
    assert counts == sorted(counts, reverse=True)


def test_activations_follow_the_tokens_of_a_frame():
    assert activations_at(1000, SIZES, {**SIZES, "rows": 10}) == 500


def test_a_plan_that_fits_is_let_through():
    check(plan(), alternatives={})


def test_a_refusal_names_the_largest_term_and_the_settings_that_fit():
    def at(rows: int) -> MemoryPlan:
        return plan("swap", {**SIZES, "rows": rows, "columns": 200}, vram=4 * GIB)

    alternatives = {"--size 2880x3200": at(180), "--size 640x3200": at(40), "--size 320x3200": at(20)}
    with pytest.raises(MemoryPlanError) as caught:
        check(at(200), alternatives=alternatives)
    assert "of 4.0 GiB; the largest term is the K/V ring with 2.7 GiB" in caught.value.message
    assert caught.value.hint == "this fits: --size 640x3200 or --size 320x3200"


def test_without_a_way_out_the_hint_points_to_other_gpus():
    with pytest.raises(MemoryPlanError, match="the largest term is the weights") as caught:
        check(plan(vram=GIB), alternatives={"--size 8x8": plan(vram=GIB)})
    assert caught.value.hint is not None and "rtgen gpu ls" in caught.value.hint
