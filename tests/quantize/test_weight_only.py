"""Blocks of weights as INT4 codes and scales: how far they lie from the weights, and how they are packed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rtgen.quantize import weight_only
from rtgen.quantize.weight_only import dequantize_blocks, pack_int4, quantize_blocks

BLOCK = 8
MATRICES = st.tuples(st.integers(1, 5), st.integers(1, 4)).flatmap(
    lambda size: arrays(
        np.float16,
        (size[0], size[1] * BLOCK),
        elements=st.floats(-60000, 60000, width=16) | st.floats(-(2**-12), 2**-12, width=16),
    )
)


@given(MATRICES)
def test_no_block_is_worse_than_its_amax_in_seven_steps(weight):
    codes, scales = quantize_blocks(weight, BLOCK)
    assert codes.dtype == np.int8 and scales.dtype == np.float16
    assert codes.min() >= -8 and codes.max() <= 7 and np.isfinite(scales).all() and scales.min() >= 0
    exact = weight.astype(np.float64).reshape(-1, BLOCK)
    missed = np.square(dequantize_blocks(codes, scales).reshape(-1, BLOCK) - exact).sum(axis=1)
    amax = np.abs(exact).max(axis=1)
    half_step = amax / 14 + np.finfo(np.float16).smallest_subnormal * 4  # tiny scales have few digits in float16
    assert (missed <= 1.01 * BLOCK * np.square(half_step)).all()


@given(MATRICES, st.integers(-3, 3))
@settings(max_examples=30)
def test_codes_do_not_depend_on_the_unit(weight, exponent):
    weight = np.clip(weight, -100, 100).astype(np.float32)
    weight[np.abs(weight) < 2**-8] = 0
    codes, _ = quantize_blocks(weight, BLOCK)
    np.testing.assert_array_equal(quantize_blocks(weight * np.float32(2.0**exponent), BLOCK)[0], codes)


def test_numbers_that_have_codes_come_back_exactly():
    weight = np.tile(np.arange(-7, 8, dtype=np.float16), (4, 64))[:, : 64 * 14] * np.float16(0.125)
    codes, scales = quantize_blocks(weight, 64)
    np.testing.assert_array_equal(dequantize_blocks(codes, scales), weight)
    assert (scales == np.float16(0.125)).all()


def test_clipping_helps_where_one_weight_stands_out(monkeypatch):
    weight = np.random.default_rng(0).standard_normal((32, 256)).astype(np.float16)

    def error():
        return np.square(dequantize_blocks(*quantize_blocks(weight, 64)) - weight).mean()

    clipped = error()
    monkeypatch.setattr(weight_only, "CLIPPING", (1.0,))
    assert clipped < 0.85 * error()


def test_slabs_of_rows_do_not_show(monkeypatch):
    weight = np.random.default_rng(1).standard_normal((37, 128)).astype(np.float16)
    whole = quantize_blocks(weight, 64)
    monkeypatch.setattr(weight_only, "SLAB", 300)
    for one, other in zip(quantize_blocks(weight, 64), whole, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("weight", "problem"),
    [
        (np.ones((2, 65), np.float16), "no whole blocks of 64"),
        (np.ones((2, 64, 1), np.float16), "no whole blocks of 64"),
        (np.full((2, 64), np.nan, np.float16), "not finite"),
        (np.full((2, 64), -np.inf, np.float16), "not finite"),
        (np.full((2, 64), 1e6, np.float32), "too large"),
    ],
)
def test_what_has_no_codes_is_refused(weight, problem):
    with pytest.raises(ValueError, match=problem):
        quantize_blocks(weight, 64)


@given(arrays(np.int8, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.integers(-8, 7)))
def test_packing_is_that_of_onnx(codes):
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=codes.shape, raw_data=pack_int4(codes))
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes)
    assert len(tensor.raw_data) == (codes.size + 1) // 2
