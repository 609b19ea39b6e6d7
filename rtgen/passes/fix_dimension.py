"""Make a symbolic dimension of the graph's inputs a number."""

import onnx_ir as ir


class FixDimension(ir.passes.InPlacePass):
    """1. In every graph input and output, dimension ``name`` becomes ``size``.

    2. Shapes recorded inside the graph that mention it are dropped; compilers infer them again.

    TensorRT's K/V cache update (the import of TensorScatter) asks for a ring of fixed length.
    """

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.name, self.size = name, size

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        boundary = [*model.graph.inputs, *model.graph.outputs]
        named = [value for value in boundary if self._dimensions(value) & {self.name}]
        for value in named:
            assert value.shape is not None
            value.shape = ir.Shape(self.size if str(size) == self.name else size for size in value.shape)  # rule 1
        for node in model.graph:
            for value in node.outputs:
                if value not in boundary and any(self.name in dimension for dimension in self._dimensions(value)):
                    value.shape = None  # rule 2
        return ir.passes.PassResult(model, modified=bool(named))

    @staticmethod
    def _dimensions(value: ir.Value) -> set[str]:
        """The symbolic dimensions of a value, as text."""
        return {str(size) for size in value.shape or () if isinstance(size, ir.SymbolicDim)}
