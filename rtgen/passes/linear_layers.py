"""Where the linear layers of an exported graph are."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class LinearLayer:
    """A matrix and the products it is used in: ``MatMul(x, Transpose(matrix))``, as torch exports ``nn.Linear``."""

    weight: ir.Value
    """The initializer, ``[out, in]``."""
    matrix: ir.Value
    """The same in the type that the graph computes in: the initializer itself, or the Cast that is its only reader."""
    products: tuple[ir.Node, ...]
    """The MatMul nodes, in the graph's order. A bias is added by a node of its own."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        assert self.weight.shape is not None  # linear_layers looks for it
        rows, columns = self.weight.shape.numpy()
        return rows, columns

    @property
    def dtype(self) -> ir.DataType:
        """What the products are computed in."""
        assert self.matrix.dtype is not None
        return self.matrix.dtype


def linear_layers(graph: ir.Graph) -> dict[str, LinearLayer]:
    """Linear layers by the name of their initializer; matrices that serve as anything else besides are left out."""
    order = {node: index for index, node in enumerate(graph)}
    found = {}
    for name, value in graph.initializers.items():
        if value.shape is None or len(value.shape) != 2:
            continue
        matrix = _cast_of(value) or value
        if _is_matrix(matrix):
            transposes = [use.node for use in matrix.uses()]
            products = {use.node for transpose in transposes for use in transpose.outputs[0].uses()}
            found[name] = LinearLayer(value, matrix, tuple(sorted(products, key=order.__getitem__)))
    return found


def _cast_of(value: ir.Value) -> ir.Value | None:
    """The output of the Cast that is the weight's only reader, if it is one."""
    readers = [use.node for use in value.uses()]
    return readers[0].outputs[0] if len(readers) == 1 and readers[0].op_type == "Cast" else None


def _is_matrix(value: ir.Value) -> bool:
    uses = value.uses()
    return bool(uses) and not value.is_graph_output() and all(_is_transpose(use.node) for use in uses)


def _is_transpose(node: ir.Node) -> bool:
    """Whether a node is the Transpose of a linear layer."""
    permutation = node.attributes.get("perm")
    return (
        node.op_type == "Transpose"
        and (permutation is None or tuple(permutation.as_ints()) == (1, 0))
        and not node.outputs[0].is_graph_output()
        and all(use.node.op_type == "MatMul" and use.idx == 1 for use in node.outputs[0].uses())
    )
