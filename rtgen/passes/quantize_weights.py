"""Let the matrices of a graph be small integers that are scaled when they are used."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class QuantizedMatrix:
    """Where the INT4 codes ``[out, in]`` and the float16 scales ``[out, in / block]`` of a weight lie."""

    codes: ir.ExternalTensor
    scales: ir.ExternalTensor
    block: int


class QuantizeWeights(ir.passes.InPlacePass):
    """1. An initializer named in ``quantized`` becomes codes and scales, external tensors both, and a
       DequantizeLinear in blocks along the input dimension. Compilers keep such codes packed in the engine.

    2. A Cast of the weight, from the type it was stored in, is left out: scales decide the type. Where the graph
       computes in another type than float16, a Cast follows the DequantizeLinear instead.

    ``quantized`` maps initializer names, as :func:`matrices` gives them, to where the new tensors lie.
    """

    def __init__(self, quantized: Mapping[str, QuantizedMatrix]) -> None:
        super().__init__()
        self.quantized = quantized

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for name, matrix in self.quantized.items():
            _replace(model.graph, model.graph.initializers[name], matrix)
        return ir.passes.PassResult(model, modified=bool(self.quantized))


def matrices(graph: ir.Graph) -> dict[str, ir.Value]:
    """Initializers that serve as ``[out, in]`` matrices of matrix products and as nothing else, by name.

    A linear layer is exported as Transpose and MatMul, with a Cast before where it is stored in another type.
    """
    return {
        name: value
        for name, value in graph.initializers.items()
        if value.shape is not None and len(value.shape) == 2 and _is_matrix(_cast_of(value) or value)
    }


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


def _cast_of(value: ir.Value) -> ir.Value | None:
    """The output of the Cast that is the weight's only reader, if it is one."""
    readers = [use.node for use in value.uses()]
    return readers[0].outputs[0] if len(readers) == 1 and readers[0].op_type == "Cast" else None


def _replace(graph: ir.Graph, weight: ir.Value, matrix: QuantizedMatrix) -> None:
    cast = _cast_of(weight)
    used = cast or weight
    readers = {use.node for use in used.uses()}
    codes, scales = (
        ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        for tensor in (matrix.codes, matrix.scales)
    )
    dequantize = ir.node("DequantizeLinear", [codes, scales], attributes={"axis": 1, "block_size": matrix.block})
    added, result = [dequantize], dequantize.outputs[0]  # rule 1
    result.name, result.shape, result.dtype = f"{weight.name}.dequantized", used.shape, ir.DataType.FLOAT16
    if used.dtype != ir.DataType.FLOAT16:
        added.append(ir.node("Cast", [result], attributes={"to": used.dtype}))  # rule 2
        result = added[-1].outputs[0]
        result.name, result.shape, result.type = f"{weight.name}.cast", used.shape, used.type
    # Beside the first reader: what runs the graph node by node then never holds two dequantized matrices.
    graph.insert_before(next(node for node in graph if node in readers), added)
    ir.convenience.replace_all_uses_with(used, result)
    if cast is not None:
        graph.remove(cast.producer(), safe=True)  # type: ignore[arg-type]  # a Cast's output has a producer
    graph.initializers.pop(weight.name)  # type: ignore[arg-type]
    graph.register_initializer(codes)
    graph.register_initializer(scales)
