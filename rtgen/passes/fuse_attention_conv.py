"""A block of single-head attention as ``rtgen::AttentionConv``."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

import onnx_ir as ir

from rtgen.passes.neighbours import dimensions, only_reader, other_input, replace_last
from rtgen.plugins.attention_conv import PLUGIN
from rtgen.plugins.attention_conv_kernel import CHANNEL_STEP, MOST_CHANNELS
from rtgen.plugins.base import DOMAIN, DOMAIN_VERSION

_IMAGE_RANK: Final = 5


class FuseAttentionConv(ir.passes.InPlacePass):
    """Unmasked Attention of one head, the matrix product and bias after it and the residual become one node.

    What is looked for is the mid block of an autoencoder as torch exports it (``rtgen.models.autoencoder_blocks``)::

        qkv -> Unsqueeze -> Split -> Attention -> Squeeze -> MatMul(Transpose(weight)) -> Add(bias)
            -> Reshape to [streams, frames, height, width, channels] -> Transpose to channels first -> Add(residual)

    1. The node reads qkv as it is, so queries, keys and values are never taken apart, and writes channels first, so
       the Transpose goes too.

    2. An image without frames, ``[N, channels, height, width]``, gets a dimension of one frame around the node.

    3. Left as they are: graphs of another type than float16, widths and scales that the kernel does not serve, and
       blocks of which anything else reads a value in between.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        blocks = [block for node in model.graph if (block := _find(node)) is not None]
        for block in blocks:
            _replace(model.graph, block)
        if blocks:
            model.graph.opset_imports[DOMAIN] = DOMAIN_VERSION
        return ir.passes.PassResult(model, modified=bool(blocks))


@dataclass(frozen=True)
class _Block:
    qkv: ir.Value
    weight: ir.Value
    bias: ir.Value
    residual: ir.Value
    scale: float
    last: ir.Node
    """The Add of the residual."""


def _find(attention: ir.Node) -> _Block | None:
    """The block around an Attention, if it is one."""
    qkv = _packed(attention)
    if qkv is None or not _is_plain(attention):
        return None
    squeeze = only_reader(attention.outputs[0], "Squeeze")
    product = squeeze and only_reader(squeeze.outputs[0], "MatMul", index=0)
    weight = product and _transposed(product.inputs[1])
    add = product and only_reader(product.outputs[0], "Add")
    reshape = add and only_reader(add.outputs[0], "Reshape", index=0)
    transpose = reshape and only_reader(reshape.outputs[0], "Transpose")
    last = transpose and only_reader(transpose.outputs[0], "Add")
    if not (product and weight and add and transpose and last):
        return None
    bias, residual = other_input(add, product.outputs[0]), other_input(last, transpose.outputs[0])
    scale = float(attention.attributes["scale"].value) if "scale" in attention.attributes else 0.0
    if scale < 0 or not (_fits(qkv, weight, bias) and _is_image(transpose, residual, qkv)):
        return None
    return _Block(qkv, weight, bias, residual, scale, last)


def _packed(attention: ir.Node) -> ir.Value | None:
    """The ``[images, tokens, 3 * channels]`` of which queries, keys and values are the thirds."""
    if attention.op_type != "Attention" or any(value is not None for value in attention.inputs[3:]):
        return None
    split = attention.inputs[0] and attention.inputs[0].producer()
    if (
        not split
        or split.op_type != "Split"
        or len(split.outputs) != 3
        or list(attention.inputs[:3]) != list(split.outputs)
    ):
        return None
    if any(len(value.uses()) != 1 or value.is_graph_output() for value in split.outputs):
        return None
    sizes = [dimensions(value)[-1:] for value in split.outputs]
    unsqueeze = split.inputs[0] and split.inputs[0].producer()
    if not unsqueeze or unsqueeze.op_type != "Unsqueeze" or len(unsqueeze.outputs[0].uses()) != 1:
        return None
    qkv, apart = unsqueeze.inputs[0], dimensions(unsqueeze.outputs[0])
    if qkv is None or len(dimensions(qkv)) != 3 or apart[1:2] != [1] or sizes[0] != sizes[1] or sizes[1] != sizes[2]:
        return None
    return qkv if dimensions(qkv)[2] == 3 * sizes[0][0] else None


def _is_plain(attention: ir.Node) -> bool:
    """Not causal, without a cap on its scores, one head, and only its first output is read."""
    plain = all(
        name not in attention.attributes or not attention.attributes[name].value for name in ("is_causal", "softcap")
    )
    return (
        plain and dimensions(attention.outputs[0])[1:2] == [1] and not any(out.uses() for out in attention.outputs[1:])
    )


def _fits(qkv: ir.Value, weight: ir.Value, bias: ir.Value) -> bool:
    """Whether the kernel serves type and width (rule 3)."""
    shape = dimensions(weight)
    if qkv.dtype != ir.DataType.FLOAT16 or len(shape) != 2 or dimensions(bias) != shape[:1]:
        return False
    width = shape[1]
    return isinstance(width, int) and width % CHANNEL_STEP == 0 and 0 < width <= MOST_CHANNELS


def _is_image(transpose: ir.Node, residual: ir.Value, qkv: ir.Value) -> bool:
    """Whether the transposed tensor is the residual's like, channels first, and each frame is one image of qkv."""
    image, images = dimensions(transpose.outputs[0]), dimensions(qkv)[0]
    rank = len(image)
    perm = tuple(transpose.attributes["perm"].as_ints()) if "perm" in transpose.attributes else ()
    if rank not in (_IMAGE_RANK - 1, _IMAGE_RANK) or perm != (0, rank - 1, *range(1, rank - 1)):
        return False
    if image != dimensions(residual):
        return False
    outer = [image[0], *image[2:-2]]
    numbers = [size for size in outer if isinstance(size, int)]
    return prod(numbers) == images if len(numbers) == len(outer) else outer == [images]


def _replace(graph: ir.Graph, block: _Block) -> None:
    exact = block.last.outputs[0]
    nodes = [_node(block, block.residual)]
    if len(dimensions(exact)) < _IMAGE_RANK:  # rule 2
        axis = ir.node("Constant", [], {"value_ints": [2]})
        with_frame = ir.node("Unsqueeze", [block.residual, axis.outputs[0]])
        fused = _node(block, with_frame.outputs[0])
        nodes = [axis, with_frame, fused, ir.node("Squeeze", [fused.outputs[0], axis.outputs[0]])]
        for node in (with_frame, fused):
            node.outputs[0].type = exact.type
    replace_last(graph, block.last, nodes)


def _node(block: _Block, residual: ir.Value) -> ir.Node:
    width = dimensions(block.weight)[1]
    attributes = {"channels": int(width), "scale": block.scale}
    return ir.node(PLUGIN.name, [block.qkv, block.weight, block.bias, residual], attributes, domain=DOMAIN)


def _transposed(value: ir.Value | None) -> ir.Value | None:
    """The matrix that a value is the transpose of."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or len(dimensions(node.outputs[0])) != 2:
        return None
    perm = node.attributes.get("perm")
    return node.inputs[0] if perm is None or tuple(perm.as_ints()) == (1, 0) else None
