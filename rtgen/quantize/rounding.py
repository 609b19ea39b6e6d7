"""From a matrix and the inputs it is given to what the weight file stores, chosen by the error that is left.

The layers of one input share its pre-scale, its calibrated scale and its rotation, so that what is done to the input
is done once. Everything is tried on some sampled rows and judged on others, which come from other streams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.quantize.compensated import REMAINS, Compensation
from rtgen.quantize.formats import (
    FP8_HIGHEST,
    INT8_HIGHEST,
    Tensors,
    dequantize,
    fp4_unit,
    packed_int4,
    rounded,
    rounding_of,
)
from rtgen.quantize.modelopt_driver import Calibrated, calibrate_group
from rtgen.quantize.result import LayerResult
from rtgen.quantize.simulate import SimulatedLinear, rounded_input
from rtgen.quantize.w4a4 import branch, quantize_w4a4

if TYPE_CHECKING:
    from torch import nn

    from rtgen.config.recipe import Quantization

JUDGED: Final = 0.25
"""Share of the sampled rows, the last ones, that candidates are judged on."""

COMPARED: Final = 1024
"""Rows, at least, that candidates are compared on."""

CLIPPING: Final = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Candidates for the share of an input's amax that the greatest INT8 code stands for."""


@dataclass(frozen=True)
class InputTreatment:
    """What is done to the input of a group of layers before the matrix products."""

    pre_scale: Tensor | None
    """[in] float16."""
    input_scale: Tensor | None
    """[] float32."""
    rotated: bool = False


@dataclass(frozen=True)
class QuantizedLinear:
    """A layer as the weight file stores it."""

    result: LayerResult
    tensors: Tensors


def quantize_group(
    linears: Mapping[str, nn.Linear], inputs: Tensor, amax: Tensor, settings: Quantization
) -> list[QuantizedLinear]:
    """Quantize the layers (by the checkpoint name of their weight) that are given ``inputs`` [n, in] float32.

    ``amax`` [in] is the greatest magnitude of each channel over all inputs that were seen, sampled or not.
    """
    if settings.activations is not None and settings.activations.format == "int4":
        return _quantize_w4a4(linears, inputs, settings)
    return _quantize_alike(
        {name: linear.weight.detach().float() for name, linear in linears.items()}, inputs, amax, settings
    )


def _quantize_w4a4(linears: Mapping[str, nn.Linear], inputs: Tensor, settings: Quantization) -> list[QuantizedLinear]:
    """Layers of ``rtgen::W4A4Linear``, which does everything to its input by itself."""
    assert settings.activations is not None
    made = quantize_w4a4(
        [linear.weight for linear in linears.values()],
        [linear.bias for linear in linears.values()],
        inputs,
        rank=0 if settings.low_rank is None else settings.low_rank.rank,
        rotation=settings.activations.rotation,
    )
    found = []
    for (name, linear), w4a4 in zip(linears.items(), made, strict=True):
        treatment = InputTreatment(w4a4.pre_scale, None, w4a4.rotated)
        layer = _layer(name, (linear.out_features, linear.in_features), treatment, settings)
        tensors = {"codes": packed_int4(w4a4.codes), "scales": w4a4.scales}
        for suffix in ("pre_scale", "shift", "low_rank_down", "low_rank_up", "bias"):
            tensors[suffix] = getattr(w4a4, suffix)
        found.append(QuantizedLinear(layer.model_copy(update={"snr_db": round(w4a4.snr_db, 2)}), tensors))
    return found


def _quantize_alike(
    weights: Mapping[str, Tensor], inputs: Tensor, amax: Tensor, settings: Quantization
) -> list[QuantizedLinear]:
    """Quantize layers that share what is done to their input."""
    boundary = max(1, round(len(inputs) * (1 - JUDGED)))
    tried, judged = inputs[:boundary], inputs[boundary:] if boundary < len(inputs) else inputs
    candidates = calibrate_group(list(weights.values()), tried, amax, settings)
    few = judged[:: max(1, len(judged) // COMPARED)]
    best = min(
        (pair for calibrated in candidates for pair in _rated(list(weights.values()), few, calibrated, settings)),
        key=lambda pair: pair[0],
    )[1]
    scaled = _scaled(tried, best.pre_scale)
    shape = _layer("", (1, 1), best, settings)
    compensation = Compensation(rounded_input(scaled, shape, best.input_scale))
    found = []
    for name, weight in weights.items():
        product, beside = _split(weight, best, settings, scaled)
        rounding = rounding_of(settings.weights.format, settings.weights.block, product)
        tensors = rounding.stored(*compensation.round(product, rounding))
        found.append(_described(name, weight, best, tensors, beside, judged, settings))
    return found


def snr_db(exact: Tensor, approximate: Tensor) -> float:
    """Signal-to-noise ratio in dB; that of a perfect match is given as 200."""
    signal, noise = float(exact.square().sum()), float((approximate - exact).square().sum())
    return 200.0 if noise <= signal * 1e-20 else 10 * math.log10(signal / noise) if signal > 0 else -200.0


def _rated(
    weights: Sequence[Tensor], inputs: Tensor, calibrated: Calibrated, settings: Quantization
) -> list[tuple[float, InputTreatment]]:
    """The candidates that follow from one pre-scale, each with the relative squared error of the layers' outputs that
    it leads to: that of the input, and what compensation leaves of the weights'
    (:data:`~rtgen.quantize.compensated.REMAINS`)."""
    treatments = _treatments(calibrated, inputs, settings)
    scaled = _scaled(inputs, treatments[0].pre_scale)
    totals = [0.0] * len(treatments)
    for weight in weights:
        exact = F.linear(inputs, weight)
        signal = exact.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
        product, beside = _split(weight, treatments[0], settings, scaled)
        target = exact if beside is None else exact - _branch_output(scaled, beside)
        nearest = _nearest(product, settings)
        for index, treatment in enumerate(treatments):
            shape = _layer("", (1, 1), treatment, settings)
            given = rounded_input(scaled, shape, treatment.input_scale)
            of_input, of_both = (
                (F.linear(given, matrix) - target).square().sum() / signal for matrix in (product, nearest)
            )
            totals[index] += float(of_input + REMAINS * (of_both - of_input).clamp(min=0))
    return list(zip(totals, treatments, strict=True))


def _treatments(calibrated: Calibrated, inputs: Tensor, settings: Quantization) -> list[InputTreatment]:
    """What may be done with one pre-scale: several calibrated scales for INT8, one for other formats."""
    pre_scale = None if calibrated.pre_scale is None else calibrated.pre_scale.half()
    activations, amax = settings.activations, calibrated.input_amax
    if activations is None:
        return [InputTreatment(pre_scale, None)]
    assert amax is not None  # it is calibrated wherever activations are quantized
    top = torch.tensor(amax if amax > 0 else 1.0, dtype=torch.float32, device=inputs.device)
    if activations.format == "fp4":
        return [InputTreatment(pre_scale, fp4_unit(top))]
    if activations.format == "fp8":
        return [InputTreatment(pre_scale, top / FP8_HIGHEST)]
    return [InputTreatment(pre_scale, top * share / INT8_HIGHEST) for share in CLIPPING]


def _scaled(inputs: Tensor, pre_scale: Tensor | None) -> Tensor:
    return inputs if pre_scale is None else inputs * pre_scale.float()


Branch = tuple[Tensor, Tensor]
"""Up [out, rank] and down [rank, in] of a low-rank branch, float32 numbers that float16 represents."""


def _split(
    weight: Tensor, treatment: InputTreatment, settings: Quantization, scaled: Tensor
) -> tuple[Tensor, Branch | None]:
    """The matrix that is to be rounded, and the low-rank branch beside it, for inputs ``scaled`` by the pre-scale."""
    matrix = weight if treatment.pre_scale is None else weight / treatment.pre_scale.float()
    if settings.low_rank is None:
        return matrix, None
    errors = rounded_input(scaled, _layer("", (1, 1), treatment, settings), treatment.input_scale) - scaled
    up, down = branch(matrix, errors, settings.low_rank.rank)
    return matrix - up @ down, (up, down)


def _branch_output(scaled: Tensor, beside: Branch) -> Tensor:
    return F.linear(F.linear(scaled, beside[1]), beside[0])


def _nearest(weight: Tensor, settings: Quantization) -> Tensor:
    """A matrix with each number rounded to its nearest."""
    rounding = rounding_of(settings.weights.format, settings.weights.block, weight)
    return dequantize(settings.weights.format, rounding.stored(*rounded(weight, rounding)))


def _layer(name: str, shape: tuple[int, int], treatment: InputTreatment, settings: Quantization) -> LayerResult:
    activations = settings.activations
    return LayerResult(
        name=name,
        weights=settings.weights.format,
        block=settings.weights.block,
        activations=None if activations is None else activations.format,
        group=None if activations is None else activations.group,
        rank=0 if settings.low_rank is None else min(settings.low_rank.rank, *shape),
        smoothed=treatment.pre_scale is not None,
        rotated=treatment.rotated,
        elements=shape[0] * shape[1],
    )


def _described(
    name: str,
    weight: Tensor,
    treatment: InputTreatment,
    tensors: Tensors,
    beside: Branch | None,
    judged: Tensor,
    settings: Quantization,
) -> QuantizedLinear:
    """A layer with all of its tensors, measured on rows that nothing was chosen by."""
    if treatment.pre_scale is not None:
        tensors["pre_scale"] = treatment.pre_scale
    if treatment.input_scale is not None:
        tensors["input_scale"] = treatment.input_scale
    if beside is not None:
        tensors["low_rank_up"], tensors["low_rank_down"] = (part.half() for part in beside)
    layer = _layer(name, (weight.shape[0], weight.shape[1]), treatment, settings)
    snr = snr_db(F.linear(judged, weight), SimulatedLinear(layer, tensors, None)(judged))
    return QuantizedLinear(layer.model_copy(update={"snr_db": round(snr, 2)}), tensors)
