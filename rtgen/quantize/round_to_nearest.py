"""Quantization without calibration: each weight to its nearest, matrix by matrix, straight from the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rtgen.errors import CheckpointError
from rtgen.models.registry import prepare
from rtgen.quantize.output import COMPONENT, LayerFiles, read_stored
from rtgen.quantize.result import LayerResult, QuantizationResult
from rtgen.quantize.selection import linear_shapes, reasons_to_keep

if TYPE_CHECKING:
    from torch import Tensor

    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import Quantization, RecipeConfig
    from rtgen.models.safetensors_index import StoredTensor

Advance = Callable[[float, str], None]
"""Told the fraction that is done and the name of the weight that comes next."""


def round_to_nearest(config: ModelConfig, weights: Path, recipe: RecipeConfig, folder: Path, advance: Advance) -> None:
    """Write the quantized denoiser and its ``quantization.json`` into ``folder``.

    Raises UsageError for a model without a matrix to quantize, CheckpointError for weights that cannot be quantized.
    """
    settings = recipe.quantization
    assert settings is not None
    module, stored = prepare(COMPONENT, config, weights)
    shapes = linear_shapes(module)
    reasons = reasons_to_keep(shapes, settings)
    total, done, layers = sum(rows * columns for rows, columns in shapes.values()), 0, []
    with TemporaryDirectory(dir=folder) as scratch:
        files = LayerFiles(Path(scratch))
        for name, (rows, columns) in shapes.items():
            advance(done / total, name)
            if not reasons[name]:
                files.add(name, _rounded(name, stored[name], settings))
            layers.append(_described(name, rows * columns, reasons[name], settings))
            done += rows * columns
        result = QuantizationResult(recipe=recipe.name, algorithm=settings.algorithm, layers=tuple(layers))
        files.write(folder, result, stored)
    advance(1.0, "")


def _rounded(name: str, stored: StoredTensor, settings: Quantization) -> dict[str, Tensor]:
    import numpy as np
    import torch

    from rtgen.quantize.formats import rounded, rounding_of
    from rtgen.quantize.weight_only import pack_int4, quantize_blocks

    matrix = read_stored(stored).float()
    try:
        if settings.weights.format == "int4":
            assert settings.weights.block is not None
            codes, scales = quantize_blocks(matrix.numpy(), settings.weights.block)
            packed = np.frombuffer(bytearray(pack_int4(codes)), np.uint8).reshape(len(codes), -1)
            return {"codes": torch.from_numpy(packed), "scales": torch.from_numpy(scales)}
        if not matrix.isfinite().all():
            raise ValueError("it holds numbers that are not finite")
        rounding = rounding_of(settings.weights.format, settings.weights.block, matrix)
        return rounding.stored(*rounded(matrix, rounding))
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be quantized: {error}") from error


def _described(name: str, elements: int, reason: str, settings: Quantization) -> LayerResult:
    if reason:
        return LayerResult(name=name, weights="float", elements=elements, reason=reason)
    activations = None if settings.activations is None else settings.activations.format
    return LayerResult(
        name=name,
        weights=settings.weights.format,
        block=settings.weights.block,
        activations=activations,
        elements=elements,
    )
