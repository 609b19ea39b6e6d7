"""Let the matrices of a graph be small codes that are scaled when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rtgen.passes.linear_layers import LinearLayer
from rtgen.passes.quantized_layer import (
    QuantizedLayer,
    add_constant,
    add_stored,
    insert_before_readers,
    located,
    put_after,
    result_of,
)


class QuantizeWeights(ir.passes.InPlacePass):
    """The weights of ``layers`` become codes and scales, with DequantizeLinear between them and the product. Compilers
    keep such codes packed, and multiply codes where the other factor has codes too.

    1. int4: blocks along the input dimension, float16 scales.

    2. fp4 (e2m1): blocks of 16 with e4m3 scales, and one scale of the matrix. int8 has one scale a row, fp8 (e4m3) one
       of the matrix.

    3. What scales a row or a matrix is taken apart: a power of two before the product, and the rest after it, where it
       costs nothing beside the bias. TensorRT for RTX applies inside an integer product only what is one number for the
       matrix: with the scales of rows before it, its sums would come out unscaled in float16, and overflow.

    4. The power of two is the same for layers that read one tensor, such as q, k and v of a block, which TensorRT then
       makes one product of.

    5. A Cast of the weight, from the type it was stored in, is left out: scales decide the type. Where the graph
       computes in another type than float16, a Cast follows the DequantizeLinear of rule 1.

    It runs after :class:`rtgen.passes.quantize_activations.QuantizeActivations`, since rule 4 looks at inputs.
    """

    def __init__(self, layers: Iterable[QuantizedLayer]) -> None:
        super().__init__()
        self.layers = tuple(layers)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = list(located(model.graph, self.layers))
        powers = _shared_powers(found)
        for layer, place in found:
            added = _FORMATS[layer.weights](model.graph, layer, place, powers.get(layer.initializer, 1.0))
            _replace(model.graph, place, added)
        return ir.passes.PassResult(model, modified=bool(found))


_OUTER: Final[Mapping[str, str]] = {"int8": "scales", "fp8": "scales", "fp4": "scales_global"}
"""What scales a row or a matrix, by format."""


def _shared_powers(found: list[tuple[QuantizedLayer, LinearLayer]]) -> dict[str, float]:
    """By initializer, the power of two before the product: not below any scale of the layers that read its input."""
    largest: dict[ir.Value | None, float] = {}
    scaled = [(layer, place.products[0].inputs[0]) for layer, place in found if layer.weights in _OUTER]
    for layer, source in scaled:
        scale = float(layer.tensors[_OUTER[layer.weights]].numpy().max(initial=0.0))
        largest[source] = max(largest.get(source, 0.0), scale)
    return {layer.initializer: _power_above(largest[source]) for layer, source in scaled}


def _power_above(number: float) -> float:
    """The least power of two that is not below a number, among the normal numbers of float16."""
    return float(2.0 ** np.clip(np.ceil(np.log2(number)), -14, 15)) if number > 0 else 1.0


def _int4(graph: ir.Graph, layer: QuantizedLayer, place: LinearLayer, power: float) -> list[ir.Node]:
    inputs = [add_stored(graph, layer.tensors[name]) for name in ("codes", "scales")]
    dequantize = ir.node("DequantizeLinear", inputs, {"axis": 1, "block_size": layer.block})  # rule 1
    shape = ir.Shape(place.shape)
    result = result_of(dequantize, f"{layer.initializer}.dequantized", ir.DataType.FLOAT16, shape)
    if place.dtype == ir.DataType.FLOAT16:
        return [dequantize]
    cast = ir.node("Cast", [result], {"to": place.dtype})  # rule 5
    result_of(cast, f"{layer.initializer}.cast", place.dtype, shape)
    return [dequantize, cast]


def _fp4(graph: ir.Graph, layer: QuantizedLayer, place: LinearLayer, power: float) -> list[ir.Node]:
    codes, scales = (add_stored(graph, layer.tensors[name]) for name in ("codes", "scales"))
    name = layer.initializer
    whole = add_constant(graph, f"{name}.scale", np.asarray(np.float32(power)))
    inner = ir.node("DequantizeLinear", [scales, whole])
    exact = result_of(inner, f"{name}.scales.float", ir.DataType.FLOAT, scales.shape)
    cast = ir.node("Cast", [exact], {"to": place.dtype})
    blocks = result_of(cast, f"{name}.scales.cast", place.dtype, scales.shape)
    outer = ir.node("DequantizeLinear", [codes, blocks], {"axis": 1, "block_size": layer.block})  # rule 2
    result_of(outer, f"{name}.dequantized", place.dtype, codes.shape)
    _scale_products(graph, layer, place, power)
    return [inner, cast, outer]


def _eight_bits(graph: ir.Graph, layer: QuantizedLayer, place: LinearLayer, power: float) -> list[ir.Node]:
    codes = add_stored(graph, layer.tensors["codes"])
    number = np.asarray(power, place.dtype.numpy())
    node = ir.node("DequantizeLinear", [codes, add_constant(graph, f"{layer.initializer}.scale", number)])  # rule 2
    result_of(node, f"{layer.initializer}.dequantized", place.dtype, codes.shape)
    _scale_products(graph, layer, place, power)
    return [node]


_FORMATS: Final[Mapping[str, Callable[[ir.Graph, QuantizedLayer, LinearLayer, float], list[ir.Node]]]] = {
    "int4": _int4,
    "int8": _eight_bits,
    "fp8": _eight_bits,
    "fp4": _fp4,
}


def _scale_products(graph: ir.Graph, layer: QuantizedLayer, place: LinearLayer, power: float) -> None:
    """Multiply the products by what of the scales is not in ``power``; rule 3."""
    scales: NDArray[np.float64] = layer.tensors[_OUTER[layer.weights]].numpy().astype(np.float64)
    rows = np.broadcast_to(scales / power, place.shape[:1]).astype(place.dtype.numpy())
    rest = add_constant(graph, f"{layer.initializer}.rest", rows)
    for product in place.products:
        exact = product.outputs[0]
        node = ir.node("Mul", [exact, rest])
        result_of(node, f"{exact.name}.scaled", exact.dtype, exact.shape)
        put_after(graph, product, [node])


def _replace(graph: ir.Graph, place: LinearLayer, added: list[ir.Node]) -> None:
    """Let the matrix be the output of the last of ``added``."""
    # Beside the first reader: what runs the graph node by node then never holds two dequantized matrices.
    insert_before_readers(graph, added, [use.node for use in place.matrix.uses()])
    ir.convenience.replace_all_uses_with(place.matrix, added[-1].outputs[0])
    cast = place.matrix.producer()
    if cast is not None:
        graph.remove(cast, safe=True)
    graph.initializers.pop(place.weight.name or "")
