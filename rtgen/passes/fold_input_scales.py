"""Move factors of activations up into the norm or modulation that made them, where they cost nothing."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from rtgen.passes.quantized_layer import result_of

VECTORS: Final = 16
"""A tensor of at most so many vectors is small: the modulation of a chunk's frames is, its tokens are not."""

_Edge = tuple[ir.Node, int]
"""An input of a node."""


class FoldInputScales(ir.passes.InPlacePass):
    """A Mul of a large tensor by a constant vector along its last dimension becomes Muls of small ones.

    1. It passes a Cast, and a Reshape that leaves the last dimension.

    2. Of an Add it takes both terms, of a Mul one factor; whichever is small is multiplied there and then.

    3. Of a LayerNormalization it multiplies scale and bias.

    4. On the way, nothing else may read what it passes; if the way ends elsewhere, the Mul stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        folded = 0
        for node in list(model.graph):
            factors = _factors(node)
            source = node.inputs[0]
            if factors is None or source is None:
                continue
            edges = _way(source, _length(factors))
            if edges is not None:
                _fold(model.graph, node, source, factors, edges)
                folded += 1
        return ir.passes.PassResult(model, modified=folded > 0)


def _factors(node: ir.Node) -> ir.Value | None:
    """The constant vector that a Mul multiplies a large tensor by."""
    if node.op_type != "Mul" or node.inputs[0] is None or node.inputs[1] is None or _is_small(node.inputs[0]):
        return None
    factors = node.inputs[1]
    cast = factors.producer()
    origin = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else factors
    is_vector = origin is not None and origin.is_initializer() and origin.shape is not None and len(origin.shape) == 1
    return factors if is_vector and _length(factors) == _length(node.inputs[0]) else None


def _length(value: ir.Value) -> int | None:
    """The last dimension, where it is a number."""
    size = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def _is_small(value: ir.Value) -> bool:
    if value.shape is None or not value.shape.is_static():
        return False
    count = 1
    for size in value.shape.numpy()[:-1]:
        count *= size
    return count <= VECTORS


def _way(value: ir.Value, length: int | None) -> list[_Edge] | None:
    """The inputs to multiply so that ``value`` comes out multiplied, or None where there are none."""
    node = value.producer()
    if node is None or length is None or len(value.uses()) != 1 or value.is_graph_output():  # rule 4
        return None
    if node.op_type == "LayerNormalization":
        is_last = node.attributes.get_int("axis", -1) == -1
        return [(node, index) for index in range(1, len(node.inputs))] if is_last else None  # rule 3
    if node.op_type == "Cast" or (node.op_type == "Reshape" and _length(node.inputs[0]) == length):  # type: ignore[arg-type]
        return _way(node.inputs[0], length)  # type: ignore[arg-type]  # rule 1; both have an input
    if node.op_type not in ("Add", "Mul"):
        return None
    ways = [_side(node, index, length) for index in range(2)]  # rule 2
    if node.op_type == "Mul":
        return ways[1] or ways[0]
    return [*ways[0], *ways[1]] if ways[0] and ways[1] else None


def _side(node: ir.Node, index: int, length: int) -> list[_Edge] | None:
    value = node.inputs[index]
    if value is None:
        return None
    if _is_small(value) and _length(value) == length:
        return [(node, index)]
    return _way(value, length)


def _fold(graph: ir.Graph, mul: ir.Node, source: ir.Value, factors: ir.Value, edges: list[_Edge]) -> None:
    name = mul.outputs[0].name
    origin = factors.producer()
    stored = origin.inputs[0] if origin is not None else factors
    assert stored is not None
    ir.convenience.replace_all_uses_with(mul.outputs[0], source, replace_graph_outputs=True)
    graph.remove(mul, safe=True)
    if origin is not None and not factors.uses():
        graph.remove(origin, safe=True)
    for number, (node, index) in enumerate(edges):
        value = node.inputs[index]
        assert value is not None
        vector, added = stored, []
        if stored.dtype != value.dtype:
            added.append(ir.node("Cast", [stored], {"to": value.dtype}))
            vector = result_of(added[-1], f"{name}.factors.{number}", value.dtype, stored.shape)
        scaled = ir.node("Mul", [value, vector])
        graph.insert_before(node, [*added, scaled])
        node.replace_input_with(index, result_of(scaled, f"{name}.{number}", value.dtype, value.shape))
