"""Linear layers with INT4 weights and INT4 activations as ``rtgen::W4A4Linear``."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from rtgen.passes.linear_layers import LinearLayer
from rtgen.passes.quantized_layer import QuantizedLayer, add_constant, add_stored, located
from rtgen.plugins.base import DOMAIN, DOMAIN_VERSION
from rtgen.plugins.w4a4_linear import PLUGIN


class EmitW4A4(ir.passes.InPlacePass):
    """Those of ``layers`` whose activations are int4 become one node each (:mod:`rtgen.plugins.w4a4_linear`).

    1. The node takes the place of Transpose, MatMul and, where there is one, the Add of the bias. Codes are int8 there,
       two a byte: TensorRT has no INT4 tensors on older GPUs.

    2. The layer's bias in the weight file stands for that of the checkpoint, which is dropped.

    3. A layer without a low-rank branch gets one of rank 1, all zeros.

    The graph computes in float16; ValueError otherwise, or where the bias is not added right after the product.
    """

    def __init__(self, layers: Iterable[QuantizedLayer]) -> None:
        super().__init__()
        self.layers = tuple(layer for layer in layers if layer.activations == "int4")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for layer, place in located(model.graph, self.layers):
            if place.dtype != ir.DataType.FLOAT16:
                raise ValueError(f"{layer.initializer} is computed in {place.dtype}, not in float16")
            for product in place.products:
                _emit(model.graph, layer, place, product)
            _remove(model.graph, place)
        if self.layers:
            model.graph.opset_imports[DOMAIN] = DOMAIN_VERSION
        return ir.passes.PassResult(model, modified=bool(self.layers))


def _emit(graph: ir.Graph, layer: QuantizedLayer, place: LinearLayer, product: ir.Node) -> None:
    add = _bias_add(graph, place, product)
    last = product if add is None else add
    exact = last.outputs[0]
    node = ir.node(  # rule 1
        PLUGIN.name,
        [product.inputs[0], *_parameters(graph, layer, place)],
        {"rotate": int(layer.rotated)},
        domain=DOMAIN,
    )
    output = node.outputs[0]
    output.shape, output.type, name = exact.shape, ir.TensorType(ir.DataType.FLOAT16), exact.name
    ir.convenience.replace_all_uses_with(exact, output, replace_graph_outputs=True)
    graph.insert_after(last, node)
    if add is not None:
        bias = next(value for value in add.inputs if value is not product.outputs[0])
        graph.remove(add, safe=True)
        _drop(graph, bias)  # rule 2
    graph.remove(product, safe=True)
    output.name = name


def _parameters(graph: ir.Graph, layer: QuantizedLayer, place: LinearLayer) -> list[ir.Value]:
    """The node's inputs after the first, in order."""
    rows, columns = place.shape
    found = {name: tensor for name, tensor in layer.tensors.items() if name in PLUGIN.inputs}
    found["codes"] = _as_bytes(found["codes"], (rows, columns // 2))
    values = {name: add_stored(graph, tensor) for name, tensor in found.items()}
    for name, shape in {"low_rank_down": (1, columns), "low_rank_up": (rows, 1)}.items():
        if name not in values:  # rule 3
            values[name] = add_constant(graph, f"{name}.zeros.{max(shape)}", np.zeros(shape, np.float16))
    return [values[name] for name in PLUGIN.inputs[1:]]


def _as_bytes(codes: ir.ExternalTensor, shape: tuple[int, int]) -> ir.ExternalTensor:
    """The same place in the weight file, seen as int8."""
    return ir.ExternalTensor(
        codes.location,
        codes.offset,
        codes.length,
        ir.DataType.INT8,
        shape=ir.Shape(shape),
        name=codes.name,
        base_dir=codes.base_dir,
    )


def _bias_add(graph: ir.Graph, place: LinearLayer, product: ir.Node) -> ir.Node | None:
    """The node that adds the layer's bias, an initializer ``[out]``, to its product, and nothing else reads that."""
    uses = list(product.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not product.outputs[0].is_graph_output():
        origin = _origin(uses[0].node.inputs[1 - uses[0].idx])
        if origin is not None and origin.shape is not None and origin.shape.numpy() == place.shape[:1]:
            return uses[0].node
    stem = (place.weight.name or "").removesuffix(".stored").removesuffix("weight")
    if {f"{stem}bias", f"{stem}bias.stored"} & graph.initializers.keys():
        raise ValueError(f"the bias of {place.weight.name} is not added right after its product")
    return None


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The initializer that a value is, or is the Cast of."""
    cast = value.producer() if value is not None else None
    origin = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else value
    return origin if origin is not None and origin.is_initializer() else None


def _drop(graph: ir.Graph, value: ir.Value | None) -> None:
    """Take out a value that comes from an initializer, if nothing reads it any more."""
    if value is None or value.uses():
        return
    cast = value.producer()
    if cast is not None:
        source = cast.inputs[0]
        graph.remove(cast, safe=True)
        _drop(graph, source)
    else:
        graph.initializers.pop(value.name or "")


def _remove(graph: ir.Graph, place: LinearLayer) -> None:
    """Take out what led from the weight to the products."""
    for transpose in [use.node for use in place.matrix.uses()]:
        graph.remove(transpose, safe=True)
    _drop(graph, place.matrix)
