"""Integer products whose activations are quantized when they run, for processors."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from rtgen.passes.linear_layers import LinearLayer
from rtgen.passes.quantized_layer import (
    QuantizedLayer,
    add_stored,
    insert_before_readers,
    located,
    result_of,
)


class QuantizeDynamically(ir.passes.InPlacePass):
    """``layers`` with int8 weights, one scale a row, and int8 activations without a calibrated scale become integer
    products. ONNX Runtime has kernels for the pattern; TensorRT does not read it.

    1. The input becomes uint8 codes with scale and zero point found from its extremes (DynamicQuantizeLinear), once
       for all layers that read it.

    2. MatMulInteger with the codes of the weight, and a Mul by the product of both scales. ONNX Runtime transposes the
       codes when it loads the graph.

    The graph computes in float32; DynamicQuantizeLinear knows no other type.
    """

    def __init__(self, layers: Iterable[QuantizedLayer]) -> None:
        super().__init__()
        self.layers = tuple(layers)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        quantized: dict[ir.Value, list[ir.Value]] = {}
        for layer, place in located(model.graph, self.layers):
            if place.dtype != ir.DataType.FLOAT:
                raise ValueError(f"{layer.initializer} is computed in {place.dtype}, not in float32")
            for product in place.products:
                source = product.inputs[0]
                assert source is not None
                if source not in quantized:
                    quantized[source] = _quantize(model.graph, source)  # rule 1
            _replace(model.graph, layer, place, quantized)
        return ir.passes.PassResult(model, modified=bool(self.layers))


def _quantize(graph: ir.Graph, source: ir.Value) -> list[ir.Value]:
    """Codes, scale and zero point of a value, found at run time."""
    node = ir.node("DynamicQuantizeLinear", [source], num_outputs=3)
    kinds = {"codes": ir.DataType.UINT8, "scale": ir.DataType.FLOAT, "zero": ir.DataType.UINT8}
    for value, (name, dtype) in zip(node.outputs, kinds.items(), strict=True):
        value.name, value.type = f"{source.name}.{name}", ir.TensorType(dtype)
        value.shape = source.shape if name == "codes" else ir.Shape(())
    insert_before_readers(graph, [node], [use.node for use in source.uses()])
    return list(node.outputs)


def _replace(
    graph: ir.Graph, layer: QuantizedLayer, place: LinearLayer, quantized: dict[ir.Value, list[ir.Value]]
) -> None:
    codes, scales = (add_stored(graph, layer.tensors[name]) for name in ("codes", "scales"))
    transpose = ir.node("Transpose", [codes], {"perm": [1, 0]})
    matrix = result_of(transpose, f"{codes.name}.transposed", ir.DataType.INT8, ir.Shape(place.shape[::-1]))
    graph.insert_before(place.products[0], transpose)
    for product in place.products:
        exact = product.outputs[0]
        source = product.inputs[0]
        assert source is not None
        inputs, scale, zero = quantized[source]
        integer = ir.node("MatMulInteger", [inputs, matrix, zero])  # rule 2
        sums = result_of(integer, f"{exact.name}.integer", ir.DataType.INT32, exact.shape)
        cast = ir.node("Cast", [sums], {"to": ir.DataType.FLOAT})
        factors = ir.node("Mul", [scale, scales])
        total = result_of(factors, f"{exact.name}.scales", ir.DataType.FLOAT, scales.shape)
        real = result_of(cast, f"{exact.name}.float", ir.DataType.FLOAT, exact.shape)
        scaled = ir.node("Mul", [real, total])
        graph.insert_before(product, [integer, cast, factors, scaled])
        output = result_of(scaled, f"{exact.name}.scaled", ir.DataType.FLOAT, exact.shape)
        ir.convenience.replace_all_uses_with(exact, output, replace_graph_outputs=True)
    _remove(graph, place)


def _remove(graph: ir.Graph, place: LinearLayer) -> None:
    """Take out the products and all that only led from the weight to them."""
    transposes = [use.node for use in place.matrix.uses()]
    cast = place.matrix.producer()
    for node in [*place.products, *transposes, *([cast] if cast is not None else [])]:
        graph.remove(node, safe=True)
    graph.initializers.pop(place.weight.name or "")
