"""Fold constants and drop what is redundant, except where a weight is involved."""

import onnx_ir as ir


class Simplify(ir.passes.InPlacePass):
    """1. Everything that depends on constants alone is folded (shapes, tables, scalars).

    2. A node that reads one of ``weights`` is left: folding a transpose into a weight would store a second, renamed
       copy of it, while compilers fold it for free when they load the graph.
    """

    def __init__(self, weights: frozenset[str]) -> None:
        super().__init__()
        self.weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        from onnxscript import optimizer

        def should_fold(node: ir.Node) -> bool | None:
            reads_weight = any(value is not None and value.name in self.weights for value in node.inputs)
            return False if reads_weight else None  # rule 2

        optimizer.optimize_ir(model, should_fold=should_fold)  # rule 1
        return ir.passes.PassResult(model, modified=True)
