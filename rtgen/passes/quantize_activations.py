"""Let the inputs of linear layers pass through codes, so that compilers multiply codes by codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx_ir as ir

from rtgen.passes.quantized_layer import (
    QuantizedLayer,
    add_constant,
    insert_before_readers,
    located,
    result_of,
)

TENSORRT: Final = "trt"
"""The domain of TensorRT's own operators."""

_CODES: Final = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


class QuantizeActivations(ir.passes.InPlacePass):
    """The inputs of those ``layers`` whose activations have codes are quantized and dequantized.

    1. int8 and fp8 (e4m3): QuantizeLinear and DequantizeLinear with one calibrated scale, a constant of the graph.

    2. fp4 (e2m1): ``trt::TRT_FP4DynamicQuantize`` finds the e4m3 scale of 16 numbers when it runs, under one calibrated
       scale of the tensor; two DequantizeLinear undo it. Only TensorRT knows that node.

    3. Layers that read one tensor with one scale share the nodes: q, k and v of a block, for one.
    """

    def __init__(self, layers: Iterable[QuantizedLayer]) -> None:
        super().__init__()
        self.layers = tuple(layer for layer in layers if layer.activations in ("int8", "fp8", "fp4"))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        groups: dict[tuple[ir.Value, str | None, float], list[tuple[QuantizedLayer, ir.Node]]] = {}
        for layer, place in located(model.graph, self.layers):
            for product in place.products:
                source = product.inputs[0]
                assert source is not None
                key = source, layer.activations, layer.scalar("input_scale")
                groups.setdefault(key, []).append((layer, product))
        for (source, kind, scale), members in groups.items():  # rule 3
            layer, products = members[0][0], [product for _, product in members]
            emit = _fp4 if kind == "fp4" else _by_one_scale
            name = f"{products[0].outputs[0].name}.input"
            added = emit(model.graph, layer, name, source, scale)
            insert_before_readers(model.graph, added, products)
            for product in products:
                product.replace_input_with(0, added[-1].outputs[0])
        if any(layer.activations == "fp4" for layer in self.layers):
            model.graph.opset_imports[TENSORRT] = 1
        return ir.passes.PassResult(model, modified=bool(groups))


def _half(step: float) -> np.float16:
    """A scale in float16. Steps below its normal numbers, which have few digits, become the least of them."""
    return np.float16(max(step, float(np.finfo(np.float16).tiny)))


def _by_one_scale(graph: ir.Graph, layer: QuantizedLayer, name: str, source: ir.Value, scale: float) -> list[ir.Node]:
    kind = _CODES[layer.activations or ""]
    number = np.asarray(_half(scale) if source.dtype == ir.DataType.FLOAT16 else np.float32(scale))
    parameters = [
        add_constant(graph, f"{name}.scale", number),
        add_constant(graph, f"zero.{layer.activations}", np.zeros((), kind.numpy())),  # it tells the type
    ]
    quantize = ir.node("QuantizeLinear", [source, *parameters])  # rule 1
    codes = result_of(quantize, f"{name}.codes", kind, source.shape)
    dequantize = ir.node("DequantizeLinear", [codes, *parameters])
    result_of(dequantize, f"{name}.dequantized", source.dtype, source.shape)
    return [quantize, dequantize]


def _fp4(graph: ir.Graph, layer: QuantizedLayer, name: str, source: ir.Value, scale: float) -> list[ir.Node]:
    block = layer.group
    whole = add_constant(graph, f"{name}.scale", np.asarray(np.float32(scale)))
    kind = int(ir.DataType.FLOAT8E4M3FN)
    attributes = {"axis": -1, "block_size": block, "scale_type": kind}
    quantize = ir.node("TRT_FP4DynamicQuantize", [source, whole], attributes, domain=TENSORRT, num_outputs=2)  # rule 2
    codes = result_of(quantize, f"{name}.codes", ir.DataType.FLOAT4E2M1, source.shape)
    scales = quantize.outputs[1]
    scales.name, scales.type = f"{name}.scales", ir.TensorType(ir.DataType.FLOAT8E4M3FN)
    inner = ir.node("DequantizeLinear", [scales, whole])
    cast = ir.node("Cast", [result_of(inner, f"{name}.scales.float", ir.DataType.FLOAT, None)], {"to": source.dtype})
    blocks = result_of(cast, f"{name}.scales.cast", source.dtype, None)
    outer = ir.node("DequantizeLinear", [codes, blocks], {"axis": -1, "block_size": block})
    result_of(outer, f"{name}.dequantized", source.dtype, source.shape)
    return [quantize, inner, cast, outer]
