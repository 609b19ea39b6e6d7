"""What follows an ``rtgen::W4A4Linear`` and its kernel can do besides."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from rtgen.passes.mark_plugins import attributes_of
from rtgen.passes.neighbours import dimensions, only_reader, other_input, replace_last
from rtgen.plugins.base import DOMAIN
from rtgen.plugins.w4a4_linear import GATED, PLUGIN
from rtgen.plugins.w4a4_linear_kernel import GELU, NONE

_GATE_RANK: Final = 3


class FuseW4A4Epilogues(ir.passes.InPlacePass):
    """GELU, or gate and residual, become part of the linear layer whose output nothing else reads.

    1. ``W4A4Linear -> Gelu`` with tanh becomes the node's epilogue. float16 is rounded to once, after GELU.

    2. ``W4A4Linear -> Cast to float32 -> Reshape to frames -> Mul(Unsqueeze(gate)) -> Reshape to tokens ->
       Add(residual)``, as the blocks of ``rtgen.models.dit`` are exported, becomes ``W4A4LinearGated``. The product is
       not rounded to float16 any more.

    3. Left as they are: layers whose values in between anything else reads, and gates and residuals of other shapes
       or types than the operator takes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for linear in [node for node in model.graph if node.domain == DOMAIN and node.op_type == PLUGIN.name]:
            if attributes_of(PLUGIN, linear)["epilogue"] == NONE:
                modified |= _fuse_gelu(model.graph, linear) or _fuse_gate(model.graph, linear)
        return ir.passes.PassResult(model, modified=modified)


def _fuse_gelu(graph: ir.Graph, linear: ir.Node) -> bool:
    gelu = only_reader(linear.outputs[0], "Gelu")
    if gelu is None or "approximate" not in gelu.attributes:
        return False
    if gelu.attributes["approximate"].as_string() != "tanh":
        return False
    attributes = attributes_of(PLUGIN, linear) | {"epilogue": GELU}
    replace_last(graph, gelu, [ir.node(PLUGIN.name, linear.inputs, attributes, domain=DOMAIN)])
    return True


def _fuse_gate(graph: ir.Graph, linear: ir.Node) -> bool:
    output = linear.outputs[0]
    cast = only_reader(output, "Cast")
    apart = cast and only_reader(cast.outputs[0], "Reshape", index=0)
    product = apart and only_reader(apart.outputs[0], "Mul")
    together = product and only_reader(product.outputs[0], "Reshape", index=0)
    add = together and only_reader(together.outputs[0], "Add")
    if not (cast and apart and product and together and add):
        return False
    gate = _gate(other_input(product, apart.outputs[0]), apart.outputs[0])
    residual = other_input(add, together.outputs[0])
    if gate is None or cast.outputs[0].dtype != ir.DataType.FLOAT or residual.dtype != ir.DataType.FLOAT:
        return False
    shape = dimensions(output)
    if len(shape) != _GATE_RANK or not dimensions(residual) == dimensions(together.outputs[0]) == shape:
        return False
    inputs = [*linear.inputs, gate, residual]
    replace_last(graph, add, [ir.node(GATED.name, inputs, attributes_of(GATED, linear), domain=DOMAIN)])
    return True


def _gate(rows: ir.Value, frames: ir.Value) -> ir.Value | None:
    """The float32 ``[B, F, N]`` that ``rows`` are, ``[B, F, 1, N]``, if they scale ``frames``, ``[B, F, T / F, N]``."""
    unsqueeze = rows.producer()
    gate = unsqueeze.inputs[0] if unsqueeze is not None and unsqueeze.op_type == "Unsqueeze" else None
    if gate is None or gate.dtype != ir.DataType.FLOAT or len(dimensions(gate)) != _GATE_RANK:
        return None
    batch, count, width = dimensions(gate)
    if dimensions(rows) != [batch, count, 1, width] or dimensions(frames)[:2] != [batch, count]:
        return None
    return gate if dimensions(frames)[3:] == [width] else None
