"""Quantized layers, rings and the count of memory, each beside what it must equal."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from rtgen.config.recipe import Quantization  # noqa: E402
from rtgen.errors import MemoryPlanError, PackageInvalidError  # noqa: E402
from rtgen.models.kv_ring import CodedKVRing, CodedRingSettings, KVRing  # noqa: E402
from rtgen.quantize.formats import rounded, rounding_of  # noqa: E402
from rtgen.quantize.result import LayerResult  # noqa: E402
from rtgen.quantize.rounding import quantize_group  # noqa: E402
from rtgen.quantize.simulate import SimulatedLinear  # noqa: E402
from rtgen.torch_backend.activations import LiveBytes  # noqa: E402
from rtgen.torch_backend.fp8_linear import Fp8Linear  # noqa: E402
from rtgen.torch_backend.lanes import HostLane  # noqa: E402
from rtgen.torch_backend.modules import parts_of  # noqa: E402
from rtgen.torch_backend.rings import InPlaceCodedRing, InPlaceRing  # noqa: E402
from rtgen.torch_backend.w4a4_module import W4A4Module  # noqa: E402

W4A4 = Quantization.model_validate(
    {
        "algorithm": "svdquant",
        "weights": {"format": "int4", "block": 64},
        "activations": {"format": "int4", "group": 64, "rotation": True},
        "low_rank": {"rank": 8},
    }
)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(128, 64).requires_grad_(False)


def relative(actual, expected):
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


def fp8_layer(linear):
    rounding = rounding_of("fp8", None, linear.weight)
    parts = rounding.stored(*(part for part in rounded(linear.weight, rounding)))
    layer = LayerResult(name="l.weight", weights="fp8", activations="fp8")
    return layer, {**parts, "input_scale": torch.tensor(3.0 / 448)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_fp8_layer_computes_what_its_stored_numbers_say(linear, dtype):
    layer, parts = fp8_layer(linear)
    x = torch.randn(2, 5, 128).to(dtype)
    x[0, 0, 0] = 1000.0  # beyond the calibrated range: it saturates
    expected = SimulatedLinear(layer, parts, linear.bias)(x.float())
    module = Fp8Linear(parts, linear.bias.to(dtype), dtype)
    y = module(x)
    assert (y.dtype, y.shape, module.weight.dtype) == (dtype, (2, 5, 64), dtype)
    assert relative(y, expected) < 5e-3
    assert 1e-3 < relative(y[1], linear(x[1].float())) < 0.1  # and it is 8 bits that are used


def test_a_w4a4_layer_computes_what_its_stored_numbers_say(linear):
    inputs = torch.randn(512, 128)
    (quantized,) = quantize_group({"l.weight": linear}, inputs, inputs.abs().amax(0), W4A4)
    x = torch.randn(1, 7, 128)
    expected = SimulatedLinear(quantized.result, quantized.tensors, linear.bias)(x)
    module = W4A4Module(quantized.tensors, quantized.result.rotated, torch.float16)
    assert relative(module(x.half()), expected) < 5e-3
    assert relative(module(x.half()), linear(x)) < 0.3
    stored = parts_of(quantized.result, (64, 128))
    assert {f"l.weight.{name}": tuple(tensor.shape) for name, tensor in quantized.tensors.items()} == stored


@pytest.mark.parametrize(
    ("changes", "shape", "match"),
    [({"rank": 4}, (64, 128), "no branch"), ({"smoothed": True}, (64, 128), "no pre-scale"), ({}, (64, 40), "of 16")],
)
def test_fp8_layers_of_other_kinds_are_refused(changes, shape, match):
    layer = LayerResult(name="l.weight", weights="fp8", activations="fp8", **changes)
    with pytest.raises(PackageInvalidError, match=match):
        parts_of(layer, shape)


def test_a_ring_in_place_is_the_functional_one():
    torch.manual_seed(0)
    shape, tokens = (1, 2, 36, 8), 12
    keys, values = ([torch.randn(shape) for _ in range(2)] for _ in range(2))
    for start, valid in ((0, 12), (12, 24), (24, 36), (12, 36)):
        index, length = torch.tensor([start]), torch.tensor([valid])
        functional = KVRing([k.clone() for k in keys], [v.clone() for v in values], index, length)
        in_place = InPlaceRing(keys, values, index, valid)
        for layer in range(2):
            chunk = [torch.randn(1, 2, tokens, 8) for _ in range(3)]
            torch.testing.assert_close(in_place(layer, *chunk), functional(layer, *chunk))
        for found, expected in zip([*keys, *values], functional.tensors, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_ring_of_codes_in_place_is_the_functional_one(bits):
    torch.manual_seed(0)
    settings = CodedRingSettings(bits, pool=9, sink=3, keep=0.5, recent=0.2)
    frame, heads, width = 4, 2, 32
    rows = 6 * frame + 9  # at most six frames are live
    states = (
        [torch.zeros(2, heads, rows, width * bits // 8, dtype=torch.int8)],
        [torch.zeros(2, heads, rows, dtype=torch.float16)],
        [torch.zeros(2, heads, width, dtype=torch.float16)],
        [torch.zeros(9, dtype=torch.int64)],
    )
    tokens = torch.tensor([frame])
    for chunk in range(5):
        slot = 3 * chunk if chunk < 3 else 3 + (3 * chunk - 3) % 6
        places = torch.tensor([slot * frame]), torch.tensor([min(3 * chunk + 3, 9) * frame]), tokens
        functional = CodedKVRing(settings, *([part.clone() for part in parts] for parts in states), *places)
        in_place = InPlaceCodedRing(settings, *states, places)
        given = [torch.randn(1, heads, width, 3 * frame).transpose(2, 3) for _ in range(3)]  # as projections leave them
        assert torch.equal(in_place(0, *given), functional(0, *given))
        for found, expected in zip((part for parts in states for part in parts), functional.tensors, strict=True):
            assert torch.equal(found, expected)


def test_live_bytes_are_those_in_use_at_once():
    x = torch.empty(1000, device="meta")
    with LiveBytes() as live:
        y = x + 1  # 4,000 bytes
        y = y * 2  # both for a moment, then one
        y.view(10, 100).add_(1)  # neither a view nor work in place makes any
        x.mul_(2)
        assert (live.now, live.peak) == (4000, 8000)
        del y
        assert live.now == 0


def test_a_lane_of_the_processor_copies_what_it_is_given():
    lane = HostLane()
    buffer = lane.zeros((2, 3), np.dtype("uint8"))
    value = np.arange(6, dtype=np.uint8).reshape(2, 3)
    lane.upload(buffer, value)
    found = lane.download(buffer)
    value[:] = 0
    lane.upload(buffer, value)
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(MemoryPlanError, match="this machine has too little"):
        lane.zeros((1 << 50,), np.dtype("float32"))
