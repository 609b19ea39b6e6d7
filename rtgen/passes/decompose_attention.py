"""Attention without a fused kernel, written out."""

from typing import Final

import numpy as np
import onnx_ir as ir

WIDEST_HEAD: Final = 256


class DecomposeAttention(ir.passes.InPlacePass):
    """1. Unmasked Attention of a single head, or of heads wider than 256, becomes product, softmax and product.

    2. The queries are scaled before the product, which could overflow float16 otherwise.

    For TensorRT, which refuses an Attention that none of its fused kernels serves. Which they serve was found by
    building: with TensorRT for RTX 1.7, no head wider than 256, and a single one (as the autoencoder's) at some
    sequence lengths only. Both are a small share of the work, and the matrix of scores is that of one frame.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph if _lacks_a_kernel(node)]
        for node in found:
            parts = _written_out(node)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], parts, [node.outputs[0]], [parts[-1].outputs[0]]
            )
        return ir.passes.PassResult(model, modified=bool(found))


def _lacks_a_kernel(node: ir.Node) -> bool:
    if node.op_type != "Attention" or any(value is not None for value in node.inputs[3:]):
        return False
    query = node.inputs[0]
    if query is None or query.shape is None or len(query.shape) != 4 or _number(node, "is_causal", 0):
        return False
    heads, width = query.shape[1], query.shape[3]
    return heads == 1 or (isinstance(width, int) and width > WIDEST_HEAD)


def _number(node: ir.Node, name: str, default: float) -> float:
    """A number among the attributes."""
    return float(node.attributes[name].value) if name in node.attributes else default


def _written_out(node: ir.Node) -> list[ir.Node]:
    query, key, value = node.inputs[:3]
    assert query is not None and query.shape is not None and query.dtype is not None
    width = query.shape[3]
    assert isinstance(width, int)
    scale = _number(node, "scale", width**-0.5)
    factor = ir.node("Constant", [], attributes={"value": ir.tensor(np.array(scale, query.dtype.numpy()))})
    scaled = ir.node("Mul", [query, factor.outputs[0]])  # rule 2
    turned = ir.node("Transpose", [key], attributes={"perm": [0, 1, 3, 2]})
    scores = ir.node("MatMul", [scaled.outputs[0], turned.outputs[0]])
    shares = ir.node("Softmax", [scores.outputs[0]], attributes={"axis": -1})
    result = ir.node("MatMul", [shares.outputs[0], value])  # rule 1
    parts = [factor, scaled, turned, scores, shares, result]
    for number, part in enumerate(parts):
        part.outputs[0].name = f"{node.outputs[0].name}.{number}"
        part.outputs[0].type = query.type
    return parts
