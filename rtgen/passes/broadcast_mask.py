"""Masks of attention as small as they can be."""

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


class BroadcastMask(ir.passes.InPlacePass):
    """1. In the bodies of plugins, an Attention whose mask is an Expand takes what is expanded.

    2. What only served the expansion goes.

    For TensorRT, which demands of a mask that it can be broadcast, and keeps it in memory as it is given: for each
    query of a chunk and each place of the ring, that is some hundred megabytes. ONNX Runtime does not broadcast the
    dimension of the queries, and executes what :class:`rtgen.passes.attach_functions.AttachFunctions` gives it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = 0
        for function in model.functions.values():
            for node in function:
                expand = _expanded_mask(node)
                if expand is not None:
                    node.replace_input_with(3, expand.inputs[0])  # rule 1
                    changed += 1
        if changed:
            RemoveUnusedNodesPass()(model)  # rule 2
        return ir.passes.PassResult(model, modified=changed > 0)


def _expanded_mask(node: ir.Node) -> ir.Node | None:
    """The Expand that makes the mask of an Attention node."""
    mask = node.inputs[3] if node.op_type == "Attention" and len(node.inputs) > 3 else None
    producer = None if mask is None else mask.producer()
    return producer if producer is not None and producer.op_type == "Expand" else None
