"""What a recipe is, in words and sizes, for the report."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rtgen.models.safetensors_index import read_index

if TYPE_CHECKING:
    from rtgen.config.recipe import Quantization, RecipeConfig
    from rtgen.quantize.result import QuantizationResult

_NAMES: Final = {"int4": "INT4", "int8": "INT8", "fp8": "FP8 (E4M3)", "fp4": "FP4 (E2M1)"}
_FINDING: Final = {
    "none": "rounded to nearest, without calibration",
    "max": "scales from the greatest magnitudes of the calibration streams",
    "smoothquant": "channels smoothed between weights and activations (SmoothQuant)",
    "awq": "channels scaled by what their inputs weigh (AWQ)",
    "svdquant": "the greatest singular values in a low-rank branch (SVDQuant)",
}


def weight_bits(result: QuantizationResult, weights: Path) -> float | None:
    """Bits that a quantized weight takes in the file, with scales and low-rank branch."""
    quantized = {layer.name: layer for layer in result.layers if layer.weights != "float"}
    stored, elements = 0, 0
    for name, tensor in read_index(weights, codes=True).items():
        layer = quantized.get(name.rpartition(".")[0])
        if layer is None:
            continue
        stored += tensor.length
        if name.endswith(".codes"):
            elements += prod(tensor.shape) * (2 if layer.weights in ("int4", "fp4") else 1)
    return round(8 * stored / elements, 3) if elements else None


def kept_share(result: QuantizationResult) -> float:
    """The share of the weights meant to be quantized that stayed as they were, once what that loses was measured."""
    meant = [layer for layer in result.layers if layer.weights != "float" or layer.snr_db is not None]
    total = sum(layer.elements for layer in meant)
    return sum(layer.elements for layer in meant if layer.weights == "float") / total if total else 0.0


def way(recipe: RecipeConfig, result: QuantizationResult | None) -> str:
    """How the clips of a recipe came about."""
    half = recipe.precision == "float16"
    rounding = "inputs and outputs of linear layers rounded to FP16, sums in float32" if half else "in float32"
    if recipe.quantization is None or result is None:
        return f"The torch modules on the processor, {rounding}."
    calibrated = f", calibrated with ModelOpt {result.modelopt}" if result.modelopt else ""
    return (
        f"Simulated with the torch modules on the processor, {rounding}: {_weights(recipe.quantization)}; "
        f"{_activations(recipe.quantization)}. The codes are those that the build stores: "
        f"{_FINDING[recipe.quantization.algorithm]}{calibrated}."
    )


def _weights(settings: Quantization) -> str:
    weights = settings.weights
    shared = {"int8": "a scale an output channel", "fp8": "a scale a matrix"}
    scales = shared[weights.format] if weights.block is None else f"a scale for each {weights.block} of a row"
    return f"{_NAMES[weights.format]} weights, {scales}"


def _activations(settings: Quantization) -> str:
    activations = settings.activations
    if activations is None:
        return "activations not quantized"
    if activations.group is None:
        return f"{_NAMES[activations.format]} activations, one scale a tensor"
    return f"{_NAMES[activations.format]} activations, a scale for each {activations.group} numbers of a token"
