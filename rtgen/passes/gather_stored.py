"""Look rows up in a table as it is stored, and convert the rows instead of the table."""

import onnx_ir as ir


class GatherStored(ir.passes.InPlacePass):
    """A Gather from the Cast of an initializer becomes a Cast of the Gather; the numbers are the same.

    Where constants are not folded, the Cast of a vocabulary's embedding would be gigabytes for each prompt.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        moved = 0
        for cast in list(model.graph):
            if cast.op_type != "Cast" or cast.inputs[0] is None or not cast.inputs[0].is_initializer():
                continue
            for gather in [node for node, place in cast.outputs[0].uses() if _is_gather(node, place)]:
                self._move(model.graph, cast, gather)
                moved += 1
            if not cast.outputs[0].uses():
                model.graph.remove(cast, safe=True)
        return ir.passes.PassResult(model, modified=moved > 0)

    @staticmethod
    def _move(graph: ir.Graph, cast: ir.Node, gather: ir.Node) -> None:
        table, rows = cast.inputs[0], gather.outputs[0]
        assert table is not None
        converted = ir.node("Cast", [rows], attributes={"to": cast.attributes["to"].as_int()})
        result = converted.outputs[0]
        result.name, result.shape, result.type = f"{rows.name}.cast", rows.shape, rows.type
        ir.convenience.replace_all_uses_with(rows, result)
        converted.replace_input_with(0, rows)  # its own use was replaced too
        gather.replace_input_with(0, table)
        rows.type = ir.TensorType(table.dtype) if table.dtype is not None else None
        graph.insert_after(gather, converted)


def _is_gather(node: ir.Node, place: int) -> bool:
    return node.op_type == "Gather" and place == 0 and not node.outputs[0].is_graph_output()
