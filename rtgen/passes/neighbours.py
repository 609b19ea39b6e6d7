"""What lies around a value in a graph, for passes that replace several nodes by one."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


def only_reader(value: ir.Value, op_type: str, index: int | None = None) -> ir.Node | None:
    """The one node that reads a value, if it is of this kind and reads it as input ``index``."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != op_type:
        return None
    return uses[0].node if index is None or uses[0].idx == index else None


def other_input(node: ir.Node, value: ir.Value) -> ir.Value:
    """What a node of two inputs reads beside ``value``."""
    found = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    assert found is not None  # Add and Mul have two
    return found


def dimensions(value: ir.Value) -> list[Any]:
    """Numbers and symbols; empty where the shape is unknown."""
    shape = value.shape
    return [] if shape is None else [size if isinstance(size, int) else str(size) for size in shape]


def replace_last(graph: ir.Graph, last: ir.Node, nodes: list[ir.Node]) -> None:
    """The last of ``nodes`` takes the place of ``last`` and the name, type and shape of its output.

    What led to ``last`` alone goes.
    """
    exact, output = last.outputs[0], nodes[-1].outputs[0]
    name, output.shape, output.type = exact.name, exact.shape, exact.type
    ir.convenience.replace_all_uses_with(exact, output, replace_graph_outputs=True)
    graph.insert_after(last, nodes)
    for number, node in enumerate(nodes):
        node.outputs[0].name = name if node is nodes[-1] else f"{name}.{number}"
    remove_unread(graph, last)


def remove_unread(graph: ir.Graph, node: ir.Node) -> None:
    """Take out a node that nothing reads, and what led to it alone."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    inputs = [value for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for value in dict.fromkeys(inputs):
        producer = value.producer()
        if producer is not None:
            if producer.graph is not None:  # else it is gone already
                remove_unread(graph, producer)
        elif value.is_initializer() and not value.uses() and not value.is_graph_input():
            graph.initializers.pop(value.name or "", None)
