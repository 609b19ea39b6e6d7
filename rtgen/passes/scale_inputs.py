"""Multiply the inputs of linear layers by what their stored weights are divided by."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from rtgen.passes.quantized_layer import (
    QuantizedLayer,
    add_stored,
    insert_before_readers,
    located,
    result_of,
)


class ScaleInputs(ir.passes.InPlacePass):
    """1. The input of each of ``layers`` that has a pre-scale ``[in]`` is multiplied by it, in the type that the graph
       computes in.

    2. Layers that read one tensor and have equal pre-scales share the product: q, k and v of a block, for one.
    """

    def __init__(self, layers: Iterable[QuantizedLayer]) -> None:
        super().__init__()
        self.layers = tuple(layer for layer in layers if "pre_scale" in layer.tensors)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        groups: dict[tuple[ir.Value, bytes], list[tuple[QuantizedLayer, ir.Node]]] = {}
        for layer, place in located(model.graph, self.layers):
            factors = layer.tensors["pre_scale"].tobytes()
            for product in place.products:
                source = product.inputs[0]
                assert source is not None
                groups.setdefault((source, factors), []).append((layer, product))
        for (source, _), members in groups.items():  # rule 2
            products = [product for _, product in members]
            scaled = _scale(model.graph, members[0][0], source, products)
            for product in products:
                product.replace_input_with(0, scaled)
        return ir.passes.PassResult(model, modified=bool(groups))


def _scale(graph: ir.Graph, layer: QuantizedLayer, source: ir.Value, products: list[ir.Node]) -> ir.Value:
    name = f"{products[0].outputs[0].name}.input"
    factors, added = add_stored(graph, layer.tensors["pre_scale"]), []
    if factors.dtype != source.dtype:
        added.append(ir.node("Cast", [factors], {"to": source.dtype}))
        factors = result_of(added[-1], f"{name}.factors", source.dtype, factors.shape)
    added.append(ir.node("Mul", [source, factors]))  # rule 1
    insert_before_readers(graph, added, products)
    return result_of(added[-1], f"{name}.scaled", source.dtype, source.shape)
