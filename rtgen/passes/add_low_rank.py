"""Add to linear layers what their codes miss, through a product of two narrow matrices."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from rtgen.passes.linear_layers import LinearLayer
from rtgen.passes.quantized_layer import QuantizedLayer, add_stored, located, put_after, result_of


class AddLowRank(ir.passes.InPlacePass):
    """The output of each of ``layers`` that has a low-rank branch becomes ``y + (x @ down.T) @ up.T``, with ``down``
    [rank, in] and ``up`` [out, rank] in the type that the graph computes in.

    ``x`` is the input as the layer reads it when the pass runs: after :class:`rtgen.passes.scale_inputs.ScaleInputs`,
    before activations are quantized. TensorRT joins the first products of layers that read one tensor.
    """

    def __init__(self, layers: Iterable[QuantizedLayer]) -> None:
        super().__init__()
        self.layers = tuple(layer for layer in layers if "low_rank_down" in layer.tensors)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for layer, place in located(model.graph, self.layers):
            for product in place.products:
                _add_branch(model.graph, layer, place, product)
        return ir.passes.PassResult(model, modified=bool(self.layers))


def _add_branch(graph: ir.Graph, layer: QuantizedLayer, place: LinearLayer, product: ir.Node) -> None:
    exact, value = product.outputs[0], product.inputs[0]
    added: list[ir.Node] = []
    for name in ("low_rank_down", "low_rank_up"):
        matrix = add_stored(graph, layer.tensors[name])
        if matrix.dtype != place.dtype:
            added.append(ir.node("Cast", [matrix], {"to": place.dtype}))
            matrix = result_of(added[-1], f"{exact.name}.{name}.cast", place.dtype, matrix.shape)
        added.append(ir.node("Transpose", [matrix], {"perm": [1, 0]}))
        transposed = result_of(added[-1], f"{exact.name}.{name}.transposed", place.dtype, None)
        added.append(ir.node("MatMul", [value, transposed]))
        value = result_of(added[-1], f"{exact.name}.{name}", place.dtype, None)
    assert value is not None
    value.shape = exact.shape
    added.append(ir.node("Add", [exact, value]))
    result_of(added[-1], f"{exact.name}.with_low_rank", place.dtype, exact.shape)
    put_after(graph, product, added)
