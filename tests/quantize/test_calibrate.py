"""Calibrated quantization of the tiny model, from recorded streams to the weight file."""

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file

from rtgen.config.load import load_recipe
from rtgen.config.recipe import RecipeConfig
from rtgen.errors import CheckpointError, UsageError
from rtgen.models.registry import load
from rtgen.quantize import modelopt_driver
from rtgen.quantize.calibrate import calibrate
from rtgen.quantize.output import WEIGHTS
from rtgen.quantize.result import FILE_NAME, read_result
from rtgen.quantize.round_to_nearest import round_to_nearest
from rtgen.quantize.simulate import SimulatedLinear

LEAST_SNR = {"int8": 26, "fp8": 25, "int4-awq": 22, "int4": 11, "nvfp4": 17}
"""dB, of each layer of the tiny model, whose random weights have no structure to profit from."""


def quietly(fraction, detail):
    pass


def quantized(recorded, recipe, folder):
    folder.mkdir()
    calibrate(recorded.config, recorded.tiny.weights, recorded.set, recipe, "0" * 64, folder, recorded.device, quietly)
    return read_result(folder)


@pytest.fixture(scope="module")
def made(recorded, tmp_path_factory):
    """The result and the folder of a shipped recipe, made once."""
    found = {}

    def make(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("made") / name
            found[name] = quantized(recorded, load_recipe(name), folder), folder
        return found[name]

    return make


@pytest.mark.parametrize("name", LEAST_SNR)
def test_every_layer_of_the_blocks_is_near_what_it_was(recorded, made, name):
    pytest.importorskip("modelopt")
    result, folder = made(name)
    recipe = load_recipe(name).quantization
    tensors = load_file(folder / WEIGHTS)
    module, _ = load("denoiser", recorded.config, recorded.tiny.weights, "float32")
    linears = {f"{name}.weight": layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert [layer.name for layer in result.layers] == list(linears)
    for layer in result.layers:
        own = {
            key.removeprefix(f"{layer.name}."): value
            for key, value in tensors.items()
            if key.startswith(layer.name + ".")
        }
        if layer.weights == "float":
            assert layer.reason and layer.name in tensors and not own
            continue
        assert not layer.reason and layer.name not in tensors
        assert (layer.weights, layer.block) == (recipe.weights.format, recipe.weights.block)
        assert layer.snr_db >= LEAST_SNR[name], layer
        x = torch.randn(64, linears[layer.name].in_features)
        y, exact = SimulatedLinear(layer, own, linears[layer.name].bias)(x), linears[layer.name](x)
        assert (y - exact).norm() < 0.7 * exact.norm()  # other inputs than calibrated on, hence less near
    assert {key for key in tensors if not key.startswith("blocks.")} == {
        name for name, _ in module.named_parameters() if not name.startswith("blocks.")
    }


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_what_stays_for_its_sensitivity_is_measured_and_within_the_share(made, name):
    pytest.importorskip("modelopt")
    result, _ = made(name)
    kept = [layer for layer in result.layers if layer.weights == "float" and layer.snr_db is not None]
    meant = [layer for layer in result.layers if layer.snr_db is not None]
    assert kept and all("moves its block's output by" in layer.reason for layer in kept)
    assert sum(layer.elements for layer in kept) <= 0.10 * sum(layer.elements for layer in meant)


def test_layers_of_one_input_share_what_is_done_to_it(made):
    pytest.importorskip("modelopt")
    for name in ("int8", "nvfp4", "int4"):
        result, folder = made(name)
        tensors = load_file(folder / WEIGHTS)
        quantized = {layer.name for layer in result.layers if layer.weights != "float"}
        q, k = (f"blocks.1.self_attn.{part}.weight" for part in "qk")
        if {q, k} <= quantized:
            for suffix in ("pre_scale", "input_scale"):
                if f"{q}.{suffix}" in tensors:
                    assert torch.equal(tensors[f"{q}.{suffix}"], tensors[f"{k}.{suffix}"])


def test_the_same_streams_give_the_same_bytes(recorded, made, tmp_path):
    again = quantized(recorded, load_recipe("int4"), tmp_path / "again")
    result, folder = made("int4")
    assert again == result and result.modelopt is None and result.calibration == "0" * 64
    for name in (FILE_NAME, WEIGHTS):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_recipes_that_need_modelopt_say_so_where_it_is_missing(recorded, tmp_path, monkeypatch):
    import builtins

    actual = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("modelopt"):
            raise ImportError("No module named 'modelopt'")
        return actual(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(modelopt_driver.MissingDependencyError, match="needs NVIDIA ModelOpt") as caught:
        quantized(recorded, load_recipe("int8"), tmp_path / "made")
    assert caught.value.hint == 'pip install "rtgen[compile]"'


def small_recipe(**fields):
    weights = fields.pop("weights", {"format": "int4", "block": 64})
    return RecipeConfig.model_validate(
        {
            "name": "small",
            "title": "x",
            "precision": "float32",
            "compilers": ["onnxruntime"],
            "quantization": {"algorithm": "none", "weights": weights, **fields},
        }
    )


def test_rounding_to_nearest_needs_no_streams(recorded, tmp_path):
    int8 = {"weights": {"format": "int8"}, "activations": {"format": "int8"}}
    for name, recipe in (("int4", small_recipe()), ("int8", small_recipe(**int8))):
        folder = tmp_path / name
        folder.mkdir()
        round_to_nearest(recorded.config, recorded.tiny.weights, recipe, folder, quietly)
        result, tensors = read_result(folder), load_file(folder / WEIGHTS)
        assert result.calibration is None and {path.name for path in folder.iterdir()} == {FILE_NAME, WEIGHTS}
        layer = result.layer("blocks.0.ffn.2.weight")
        assert layer.weights == name and f"{layer.name}.input_scale" not in tensors
        module, _ = load("denoiser", recorded.config, recorded.tiny.weights, "float32")
        x = torch.randn(16, 64)
        own = {suffix: tensors[f"{layer.name}.{suffix}"] for suffix in ("codes", "scales")}
        linear = module.get_submodule("blocks.0.ffn.2")
        assert (SimulatedLinear(layer, own, linear.bias)(x) - linear(x)).norm() < 0.15 * linear(x).norm()


@pytest.mark.parametrize("value", [float("nan"), 7e4])
def test_weights_that_cannot_be_quantized_are_named(recorded, tmp_path, value):
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(recorded.tiny.weights, tmp_path / "weights")
    for path in sorted((tmp_path / "weights").glob("denoiser.*")):
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        if "blocks.1.ffn.0.weight" in tensors:
            tensors["blocks.1.ffn.0.weight"][3, 5] = value * 1e3
        save_file(tensors, path)
    folder = tmp_path / "made"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ffn\.0\.weight cannot be quantized"):
        round_to_nearest(recorded.config, tmp_path / "weights", small_recipe(), folder, quietly)


def test_a_recipe_that_leaves_nothing_to_quantize_is_refused(recorded, tmp_path):
    with pytest.raises(UsageError, match="no matrix"):
        quantized(recorded, small_recipe(algorithm="awq", minimum_elements=10**9), tmp_path / "made")
