"""Quantized weights made without calibration, rounded to nearest, and what they stand for.

Written apart from ``rtgen.quantize``, so that tests compare two accounts of the formats.
"""

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir
from safetensors.numpy import save_file

from rtgen.passes.linear_layers import linear_layers
from rtgen.quantize.result import LayerResult, QuantizationResult
from rtgen.quantize.selection import checkpoint_name

E4M3, E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn
BLOCKS = {"int4": 64, "fp4": 16}
GROUPS = {"int4": 64, "fp4": 16}
TOPS = {"int8": 127.0, "fp8": 448.0, "fp4": 6.0 * 448.0}
"""What the greatest magnitude of the activations is divided by."""


@dataclass(frozen=True)
class Handmade:
    """A layer: its result, its tensors by their names in the file, and the matrix that these stand for."""

    result: LayerResult
    tensors: dict[str, np.ndarray]
    matrix: np.ndarray = field(repr=False)


def quantized(name, weight, weights, activations=None, *, amax=4.0, pre_scale=None, rank=0):
    """A :class:`Handmade` for a matrix. ``amax`` None leaves the scale of the activations to run time."""
    rest = weight.astype(np.float32) if pre_scale is None else weight.astype(np.float32) / pre_scale
    tensors = {}
    if rank:
        u, s, v = np.linalg.svd(rest, full_matrices=False)
        tensors["low_rank_up"] = (u[:, :rank] * s[:rank]).astype(np.float16)
        tensors["low_rank_down"] = v[:rank].astype(np.float16)
        rest = rest - tensors["low_rank_up"].astype(np.float32) @ tensors["low_rank_down"].astype(np.float32)
    codes, matrix = globals()[f"_{weights}"](rest)
    tensors |= codes
    if pre_scale is not None:
        tensors["pre_scale"] = pre_scale.astype(np.float16)
    if activations == "int4":
        tensors["shift"], tensors["bias"] = (np.zeros(size, np.float16) for size in weight.shape[::-1])
    elif activations is not None and amax is not None:
        tensors["input_scale"] = np.float32(amax / TOPS[activations])
    layer = LayerResult(
        name=name,
        weights=weights,
        block=BLOCKS.get(weights),
        activations=activations,
        group=GROUPS.get(activations),
        rank=rank,
        smoothed=pre_scale is not None,
        elements=weight.size,
    )
    return Handmade(layer, {f"{name}.{part}": np.asarray(tensor) for part, tensor in tensors.items()}, matrix)


def _int4(weight):
    blocks = weight.reshape(len(weight), -1, 64)
    scales = (np.abs(blocks).max(axis=2) / 7).astype(np.float16)
    codes = np.rint(blocks / np.maximum(scales, np.float16(1e-7))[..., None]).clip(-8, 7)
    matrix = (codes * scales.astype(np.float32)[..., None]).reshape(weight.shape)
    return {"codes": _pack(codes.reshape(weight.shape).astype(np.int8).view(np.uint8)), "scales": scales}, matrix


def _int8(weight):
    scales = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    codes = np.rint(weight / scales[:, None]).astype(np.int8)
    return {"codes": codes.view(np.uint8), "scales": scales}, codes * scales[:, None]


def _fp8(weight):
    scale = np.float32(np.abs(weight).max() / 448)
    codes = (weight / scale).astype(E4M3)
    return {"codes": codes.view(np.uint8), "scales": scale}, codes.astype(np.float32) * scale


def _fp4(weight):
    blocks = weight.reshape(len(weight), -1, 16)
    amax = np.abs(blocks).max(axis=2)
    whole = np.float32(amax.max() / (6 * 448))
    scales = (amax / (6 * whole)).astype(E4M3)
    steps = scales.astype(np.float32)[..., None] * whole
    codes = (blocks / np.where(steps > 0, steps, np.inf)).astype(E2M1)
    matrix = (codes.astype(np.float32) * steps).reshape(weight.shape)
    packed = _pack(codes.reshape(weight.shape).view(np.uint8))
    return {"codes": packed, "scales": scales.view(np.uint8), "scales_global": whole}, matrix


def _pack(codes):
    return (codes[:, 0::2] & 15) | (codes[:, 1::2] << 4)


def write_handmade(folder, graph, checkpoint, choose):
    """``quantized.safetensors``, its result and the layers by name, for the graph file ``graph``.

    ``checkpoint`` maps names to arrays. ``choose(name)`` returns the arguments of :func:`quantized` after the weight,
    or None for a layer that stays.
    """
    names = [checkpoint_name(initializer) for initializer in linear_layers(ir.load(graph).graph)]
    tensors, layers = dict(checkpoint), {}
    for name in names:
        settings = choose(name)
        if settings is not None:
            layers[name] = quantized(name, tensors.pop(name), **settings)
            tensors |= layers[name].tensors
    file = folder / "quantized.safetensors"
    save_file({name: np.array(tensor, order="C") for name, tensor in tensors.items()}, file)
    result = QuantizationResult(
        recipe="handmade", algorithm="none", layers=tuple(layer.result for layer in layers.values())
    )
    return file, result, layers
