"""Linear layers with an engine's roundings in them."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

import torch
from safetensors.torch import save_file
from torch import nn

from rtgen.errors import CheckpointError
from rtgen.fidelity.simulated_model import RoundedLinear, simulate, to_float16
from rtgen.plugins.w4a4_linear import torch_op
from rtgen.quantize.formats import dequantize, fp4_unit, rounded, rounding_of
from rtgen.quantize.result import LayerResult, QuantizationResult

BLOCKS = {"int4": 64, "fp4": 16}
GROUPS = {"int4": 64, "fp4": 16}
LARGEST = {"int8": 127.0, "fp8": 448.0}


def linear(seed=0, width=128, height=96):
    torch.manual_seed(seed)
    return nn.Linear(width, height)


def quantized(name, module, weights, activations=None, amax=4.0, **changes):
    """A layer rounded to nearest, and its stored tensors by suffix."""
    matrix = module.weight.data
    rounding = rounding_of(weights, BLOCKS.get(weights), matrix)
    parts = rounding.stored(*rounded(matrix, rounding))
    if activations in LARGEST:
        parts["input_scale"] = torch.tensor(amax / LARGEST[activations])
    elif activations == "fp4":
        parts["input_scale"] = fp4_unit(torch.tensor(amax))
    layer = LayerResult(
        name=name,
        weights=weights,
        block=BLOCKS.get(weights),
        activations=activations,
        group=GROUPS.get(activations),
        elements=matrix.numel(),
        **changes,
    )
    return layer, parts


def write(path, name, parts):
    save_file({f"{name}.{suffix}": tensor.contiguous() for suffix, tensor in parts.items()}, path)
    return path


def result_of(*layers):
    return QuantizationResult(recipe="r", algorithm="none", layers=layers)


def relative(one, other):
    return ((one - other).norm() / other.norm()).item()


def test_float16_itself_rounds_what_goes_in_and_out():
    plain, x = linear(), torch.randn(7, 128)
    rounded = RoundedLinear(plain, "float16")(x)
    assert torch.equal(rounded, to_float16(rounded))
    assert torch.equal(rounded, to_float16(plain(to_float16(x))))
    assert torch.equal(RoundedLinear(plain, "float32")(x), plain(x))


@pytest.mark.parametrize(
    ("weights", "activations", "most"),
    [
        ("int8", "int8", 0.02), ("fp8", "fp8", 0.05), ("int4", None, 0.12), ("fp4", "fp4", 0.16), ("int4", "int4", 0.2),
    ],
)  # fmt: skip
def test_every_format_stays_near_the_exact_layer_and_is_not_it(weights, activations, most):
    plain, x = linear(), torch.randn(2, 9, 128)
    layer, parts = quantized("w.weight", plain, weights, activations, float(x.abs().max()))
    error = relative(RoundedLinear(plain, "float16", layer, parts)(x), plain(x))
    assert most / 20 < error < most


def test_activations_are_rounded_to_multiples_of_their_scale():
    plain, x = linear(), torch.randn(5, 128)
    layer, parts = quantized("w.weight", plain, "int8", "int8", amax=127.0 * 0.5)  # a step of one half
    steps = (2 * to_float16(x)).round() / 2
    wanted = nn.functional.linear(steps, dequantize("int8", parts), plain.bias)
    assert torch.equal(RoundedLinear(plain, "float16", layer, parts)(x), to_float16(wanted))


@pytest.mark.parametrize("rotated", [False, True])
def test_four_bits_are_those_of_the_plugin(rotated):
    plain, x = linear(), torch.randn(6, 128)
    layer, parts = quantized("w.weight", plain, "int4", "int4", rank=8, smoothed=True, rotated=rotated)
    parts["pre_scale"] = (0.5 + torch.rand(128)).half()
    parts["low_rank_down"], parts["low_rank_up"] = (torch.randn(shape).half() / 10 for shape in ((8, 128), (96, 8)))
    parts["shift"], parts["bias"] = (torch.randn(size).half() / 10 for size in (128, 96))
    names = ("scales", "pre_scale", "shift", "low_rank_down", "low_rank_up", "bias")
    stored = [parts["codes"].view(torch.int8), *(parts[name] for name in names)]
    wanted = torch_op()(x.half(), *stored, rotate=int(rotated))
    assert relative(RoundedLinear(plain, "float16", layer, parts)(x), wanted.float()) < 1e-3


def test_a_model_is_simulated_layer_by_layer(tmp_path):
    model, x = nn.Sequential(linear(0), nn.ReLU(), linear(1, 96, 64)), torch.randn(3, 128)
    wanted = model(x)
    layer, parts = quantized("0.weight", model[0], "int8")
    file = write(tmp_path / "denoiser.quantized.safetensors", "0.weight", parts)
    simulate(model, "float16", result_of(layer), file)
    assert model[0].layer == layer and model[2].layer is None
    assert 0 < relative(model(x), wanted) < 0.02


def test_a_layer_that_stays_is_not_looked_up(tmp_path):
    model, x = nn.Sequential(linear()), torch.randn(3, 128)
    kept = LayerResult(name="0.weight", weights="float", reason="sensitive")
    file = write(tmp_path / "denoiser.quantized.safetensors", "0.weight", {"other": torch.zeros(1)})
    wanted = to_float16(model(to_float16(x)))
    assert torch.equal(simulate(model, "float16", result_of(kept), file)(x), wanted)


def test_a_file_that_does_not_fit_the_result_is_refused(tmp_path):
    def attempt(layer, parts):
        file = write(tmp_path / "denoiser.quantized.safetensors", "0.weight", parts)
        simulate(nn.Sequential(linear()), "float16", result_of(layer), file)

    layer, parts = quantized("0.weight", linear(), "int8")
    with pytest.raises(CheckpointError, match=r"lacks the codes of 0\.weight"):
        attempt(layer, {"scales": parts["scales"]})
    with pytest.raises(CheckpointError, match=r"its codes are \[96, 64\]"):
        attempt(*quantized("0.weight", linear(width=64), "int8"))
    with pytest.raises(CheckpointError, match=r"names 1\.weight"):
        attempt(layer.model_copy(update={"name": "1.weight"}), parts)
    (tmp_path / "broken").write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="not a sound safetensors file"):
        simulate(nn.Sequential(linear()), "float16", result_of(layer), tmp_path / "broken")
