"""What the quantize step decided for each matrix, and measured while it did: ``quantization.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from rtgen.config.base import Section
from rtgen.config.json_file import read_section

FILE_NAME: Final = "quantization.json"
"""Beside the weights that it describes."""

MAXIMUM_BYTES: Final = 16 << 20
"""Far above that of any model; a larger file is not read."""

WeightFormat = Literal["int4", "int8", "fp8", "fp4", "float"]
ActivationFormat = Literal["int8", "fp8", "fp4", "int4"]


class LayerResult(Section):
    """One matrix of a component, shape ``[out, in]``.

    Beside it in the weight file, by ``N`` = ``name`` (checkpoint names have no export prefix):

    ==================== ======= ===================================================================================
    ``N.codes``          uint8   int4 and fp4 (e2m1): two a byte, the first in the low half, ``[out, in / 2]``; int8
                                 (two's complement) and fp8 (e4m3): one byte each, ``[out, in]``
    ``N.scales``                 float16 ``[out, in / block]``; int8 without block: float32 ``[out]``; fp8: float32
                                 ``[]``; fp4: the bytes of e4m3, uint8 ``[out, in / 16]``
    ``N.scales_global``  float32 ``[]``; fp4 only: a weight is code * scale * scales_global
    ``N.input_scale``    float32 ``[]``; the step of activations with one calibrated scale a tensor. fp4: the global
                                 scale of the activations
    ``N.pre_scale``      float16 ``[in]``; multiplies the input before anything else; only with ``smoothed``
    ``N.low_rank_down``  float16 ``[rank, in]``; only with ``rank``
    ``N.low_rank_up``    float16 ``[out, rank]``; y += (x * pre_scale - shift) @ down.T @ up.T, before any rotation
    ``N.shift``          float16 ``[in]``; int4 activations only: subtracted after the pre-scale
    ``N.bias``           float16 ``[out]``; int4 activations only: takes the place of the layer's own
    ==================== ======= ===================================================================================
    """

    name: str
    """In the checkpoint, such as ``blocks.0.self_attn.q.weight``."""
    weights: WeightFormat
    """``float``: left in the recipe's precision, and in the file under its own name."""
    block: int | None = Field(default=None, gt=0)
    """Weights of a row that share a scale; None: one a row (int8) or a matrix (fp8)."""
    activations: ActivationFormat | None = None
    group: int | None = Field(default=None, gt=0)
    """Activations of a token that share a scale, found at run time; None: one calibrated scale a tensor."""
    rank: int = Field(default=0, ge=0)
    """Rank of the branch that adds what the codes miss; 0: no branch."""
    smoothed: bool = False
    """A pre-scale ``[in]`` multiplies the input; the stored weight is already divided by it."""
    rotated: bool = False
    """The input is rotated by a normalised Hadamard matrix, in blocks of ``group``; the stored weight already is."""
    snr_db: float | None = None
    """Signal-to-noise ratio of the layer's output on the calibration set, in dB; None: not measured."""
    elements: int = Field(default=0, ge=0)
    """Weights of the matrix."""
    reason: str = ""
    """Why a matrix that the recipe means to quantize stayed in the recipe's precision."""


class QuantizationResult(Section):
    """What the quantize step decided for a component."""

    recipe: str
    algorithm: str
    modelopt: str | None = None
    """Version of ModelOpt, for the recipes that need it."""
    calibration: str | None = None
    """Digest of the calibration stage; None: none was needed."""
    layers: tuple[LayerResult, ...] = ()

    def layer(self, name: str) -> LayerResult | None:
        """The layer of that checkpoint name."""
        return next((layer for layer in self.layers if layer.name == name), None)


def write_result(result: QuantizationResult, folder: Path) -> None:
    """Write ``quantization.json`` into a stage folder. Raises OSError."""
    text = json.dumps(result.model_dump(mode="json"), indent=1, sort_keys=True)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8", newline="\n")


def read_result(folder: Path) -> QuantizationResult:
    """Read and check ``quantization.json`` of a stage folder. Raises PackageInvalidError."""
    return read_section(QuantizationResult, folder / FILE_NAME, MAXIMUM_BYTES, "is not a valid quantization result")
