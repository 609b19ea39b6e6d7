"""Put the bodies of functions in the place of their nodes, for compilers whose own inliner fails at it."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from rtgen.plugins.base import DOMAIN


class InlineFunctions(ir.passes.InPlacePass):
    """1. rtgen nodes of a type in ``names`` become the nodes of their function, with names of their own. TensorRT gives
       DequantizeLinear nodes of two copies of one function the same name, and refuses the second.

    2. An If in such a function, whose condition is an attribute of the node, becomes the nodes of the branch that is
       taken.

    It runs after :class:`rtgen.passes.attach_functions.AttachFunctions`.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = frozenset(names)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        functions = [function for function in model.functions.values() if self._is_meant(function)]
        for function in functions:
            for node in function.all_nodes():
                node.name = node.outputs[0].name  # the inliner takes the longer, the more nodes share a name
        result = InlinePass(self._is_meant)(model)  # rule 1
        chosen = [node for node in model.graph if node.op_type == "If" and _condition(node) is not None]
        for node in chosen if functions else ():
            _take(model.graph, node)  # rule 2
        return ir.passes.PassResult(model, modified=result.modified)

    def _is_meant(self, function: ir.Function) -> bool:
        return function.domain == DOMAIN and function.name in self.names


def _condition(node: ir.Node) -> bool | None:
    """The condition of an If, where it is the Cast of a Constant."""
    cast = node.inputs[0].producer() if node.inputs[0] is not None else None
    source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    constant = source.producer() if source is not None else None
    if constant is None or constant.op_type != "Constant" or "value_int" not in constant.attributes:
        return None
    return bool(constant.attributes["value_int"].as_int())


def _take(graph: ir.Graph, node: ir.Node) -> None:
    """Replace an If by its branch."""
    branch = node.attributes["then_branch" if _condition(node) else "else_branch"].as_graph()
    inner, outputs = list(branch), list(branch.outputs)
    branch.remove(inner)
    branch.outputs.clear()
    graph.insert_before(node, inner)
    for before, after in zip(node.outputs, outputs, strict=True):
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    cast = node.inputs[0].producer() if node.inputs[0] is not None else None
    graph.remove(node, safe=True)
    if cast is not None and not cast.outputs[0].uses():
        graph.remove(cast, safe=True)
