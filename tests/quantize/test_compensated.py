"""GPTQ: columns make up for each other's errors as far as their inputs go together."""

import pytest

pytest.importorskip("torch")

import torch

from rtgen.quantize.compensated import Compensation
from rtgen.quantize.formats import Int4Rounding, dequantize, rounded, rounding_of


def correlated(rows, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 8, generator=generator) @ torch.randn(8, width, generator=generator) + 0.1 * torch.randn(
        rows, width, generator=generator
    )


def output_error(weight, inputs, format_, block, made):
    stored = rounding_of(format_, block, weight).stored(*made)
    exact = inputs @ weight.T
    return float((inputs @ dequantize(format_, stored).T - exact).norm() / exact.norm())


@pytest.mark.parametrize(("format_", "block"), [("int4", 64), ("fp4", 16), ("fp8", None), ("int8", None)])
def test_the_output_is_nearer_than_with_each_weight_at_its_nearest(format_, block):
    weight, inputs = torch.randn(32, 256, generator=torch.Generator().manual_seed(1)), correlated(2048, 256)
    rounding = rounding_of(format_, block, weight)
    nearest = output_error(weight, inputs, format_, block, rounded(weight, rounding))
    compensated = output_error(weight, inputs, format_, block, Compensation(inputs).round(weight, rounding))
    assert compensated < 0.5 * nearest


def test_inputs_without_correlation_leave_nearly_the_nearest():
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    units, scales = Compensation(torch.eye(128).repeat(2, 1)).round(weight, Int4Rounding(64))
    nearest = rounded(weight, Int4Rounding(64))
    assert torch.equal(units, nearest[0]) and torch.equal(scales, nearest[1])


@pytest.mark.parametrize("inputs", [torch.zeros(10, 128), torch.ones(10, 128), torch.randn(1, 128)])
def test_inputs_that_say_little_are_no_obstacle(inputs):
    units, scales = Compensation(inputs).round(torch.randn(4, 128), Int4Rounding(64))
    assert units.isfinite().all() and scales.isfinite().all()


def test_wide_matrices_are_taken_in_windows(monkeypatch):
    monkeypatch.setattr("rtgen.quantize.compensated.WINDOW", 128)
    weight, inputs = torch.randn(8, 320), correlated(512, 320)
    whole = Compensation(inputs).round(weight, Int4Rounding(64))
    alone = Compensation(inputs[:, 256:]).round(weight[:, 256:], Int4Rounding(64))
    assert torch.equal(whole[0][:, 256:], alone[0]) and torch.equal(whole[1][:, 4:], alone[1])
