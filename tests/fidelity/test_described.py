"""What the report says a recipe is."""

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import save_file

from rtgen.config.load import list_recipes, load_recipe
from rtgen.fidelity.described import kept_share, way, weight_bits
from rtgen.quantize.result import LayerResult, QuantizationResult


def result(*layers):
    return QuantizationResult(recipe="r", algorithm="svdquant", modelopt="0.47", layers=layers)


def test_bits_of_a_weight_count_all_that_is_stored_for_it(tmp_path):
    file = tmp_path / "denoiser.quantized.safetensors"
    stored = {
        "a.weight.codes": torch.zeros(64, 64, dtype=torch.uint8),  # 64 x 128 in four bits
        "a.weight.scales": torch.zeros(64, 2, dtype=torch.float16),
        "a.weight.low_rank_down": torch.zeros(8, 128, dtype=torch.float16),
        "a.weight.low_rank_up": torch.zeros(64, 8, dtype=torch.float16),
        "a.bias": torch.zeros(64, dtype=torch.float16),
        "b.weight": torch.zeros(64, 64, dtype=torch.float16),
    }
    save_file(stored, file)
    four = LayerResult(name="a.weight", weights="int4", block=64, elements=64 * 128)
    kept = LayerResult(name="b.weight", weights="float", elements=64 * 64, snr_db=9.0, reason="sensitive")
    excluded = LayerResult(name="c.weight", weights="float", elements=999, reason="excluded")
    assert weight_bits(result(four, kept), file) == pytest.approx(4 + 8 * (256 + 2048 + 1024) / 8192)
    assert kept_share(result(four, kept, excluded)) == pytest.approx(1 / 3)
    assert weight_bits(result(kept), file) is None and kept_share(result()) == 0.0


def test_every_recipe_says_how_its_clips_come_about():
    said = {name: way(load_recipe(name), result()) for name in list_recipes()}
    for name, text in said.items():
        assert text.endswith(".") and (load_recipe(name).quantization is None or "Simulated" in text)
    assert "INT4 activations, a scale for each 64 numbers of a token" in said["int4"]
    assert "a scale a matrix" in said["fp8"] and "ModelOpt 0.47" in said["fp8"]
    assert "activations not quantized" in said["int4-weights"]
