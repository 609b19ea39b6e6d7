"""Number formats: what is stored stands for numbers near the given ones, and exactly for those it can represent."""

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rtgen.quantize.formats import (
    FP4_VALUES,
    dequantize,
    fp4_codes,
    fp4_unit,
    fp4_values,
    packed_int4,
    round_fp4,
    round_fp8,
    round_int8,
    rounded,
    rounding_of,
    unpack_int4,
)

BLOCKS = {"int4": 64, "int8": None, "fp8": None, "fp4": 16}
WORST = {"int4": 0.17, "int8": 0.014, "fp8": 0.036, "fp4": 0.15}
"""Relative errors of normal numbers that are never exceeded."""


def stored(weights, matrix):
    rounding = rounding_of(weights, BLOCKS[weights], matrix)
    return rounding.stored(*rounded(matrix, rounding))


@pytest.mark.parametrize("weights", BLOCKS)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e2), rows=st.integers(1, 5), blocks=st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_a_matrix_comes_back_nearly(weights, seed, scale, rows, blocks):
    matrix = torch.randn(rows, 64 * blocks, generator=torch.Generator().manual_seed(seed)) * scale
    back = dequantize(weights, stored(weights, matrix))
    assert back.shape == matrix.shape
    assert (back - matrix).norm() <= WORST[weights] * matrix.norm()


@pytest.mark.parametrize(("weights", "bits"), [("int4", 4.25), ("int8", 8 + 32 / 128), ("fp8", 8), ("fp4", 4.5)])
def test_codes_are_packed(weights, bits):
    tensors = stored(weights, torch.randn(64, 128))
    size = sum(tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if tensor.ndim)
    assert size * 8 / (64 * 128) == bits


@pytest.mark.parametrize("weights", BLOCKS)
def test_zeros_stay_zeros_beside_other_numbers(weights):
    matrix = torch.zeros(4, 128)
    assert (dequantize(weights, stored(weights, matrix)) == 0).all()
    matrix[3, 100] = 5.0
    back = dequantize(weights, stored(weights, matrix))
    assert back[3, 100] == pytest.approx(5.0, rel=0.05) and back.count_nonzero() == 1


def test_int4_codes_lie_two_a_byte_the_first_in_the_low_half():
    codes = torch.tensor([[1, -1, 7, -8]], dtype=torch.int8)
    packed = packed_int4(codes)
    assert packed.tolist() == [[0xF1, 0x87]]
    assert (unpack_int4(packed) == codes).all()


def test_fp4_rounds_to_the_nearest_value_and_ties_to_even_codes():
    table = torch.tensor(FP4_VALUES)
    assert (fp4_values(fp4_codes(table)) == table).all() and (fp4_values(fp4_codes(-table)) == -table).all()
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 99.0])
    assert fp4_values(fp4_codes(ties)).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]
    x = torch.linspace(-6, 6, 1001)
    nearest = (x[:, None].abs() - table).abs().amin(dim=1)
    assert torch.allclose((fp4_values(fp4_codes(x)) - x).abs(), nearest)


def test_activations_are_rounded_in_steps_of_their_scale():
    scale = torch.tensor(0.5)
    assert round_int8(torch.tensor([0.6, -0.76, 1e3, -1e3]), scale).tolist() == [0.5, -1.0, 63.5, -64.0]
    assert round_fp8(torch.tensor([0.5 * 448, 1e6, 0.0]), scale).tolist() == [224.0, 224.0, 0.0]


def test_fp4_groups_have_scales_of_their_own():
    x = torch.cat([torch.full((1, 16), 6.0), torch.full((1, 16), 0.006)], dim=1)
    back = round_fp4(x, fp4_unit(x.max()))
    assert torch.allclose(back, x, rtol=0.05)
