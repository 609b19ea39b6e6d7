"""Let a graph's weights refer to the checkpoint file instead of holding a copy."""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from rtgen.models.safetensors_index import StoredTensor

DATA_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


class BindWeights(ir.passes.InPlacePass):
    """1. An initializer named after a stored tensor becomes an external tensor: file, offset, length. Nothing is
       copied, and the ONNX file stays small however large the model is.

    2. Where the graph computes in another type than the weight is stored in, a Cast follows the initializer; compilers
       fold it when they load the graph.

    ``stored`` maps initializer names to where the tensor lies.
    """

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        super().__init__()
        self.stored = stored

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        bound = 0
        for name, value in list(model.graph.initializers.items()):
            place = self.stored.get(name)
            if place is None:
                continue
            if value.const_value is None or tuple(value.const_value.shape) != place.shape:
                raise ValueError(f"'{name}' is {place.shape} in {place.file.name}, the graph needs {value.shape}")
            self._bind(model.graph, value, place)
            bound += 1
        return ir.passes.PassResult(model, modified=bound > 0)

    @staticmethod
    def _bind(graph: ir.Graph, value: ir.Value, place: StoredTensor) -> None:
        wanted, name = value.dtype, value.name or ""
        external = ir.ExternalTensor(
            place.file.name,
            place.offset,
            place.length,
            DATA_TYPES[place.dtype],
            shape=ir.Shape(place.shape),
            name=name,
            base_dir=str(Path(place.file).parent),
        )
        if external.dtype == wanted:
            value.const_value = external  # rule 1
            return
        stored = ir.Value(
            name=f"{name}.stored", shape=external.shape, type=ir.TensorType(external.dtype), const_value=external
        )
        external.name = f"{name}.stored"
        cast = ir.node("Cast", [stored], attributes={"to": wanted})  # rule 2
        cast.outputs[0].name = f"{name}.cast"
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        graph.initializers.pop(name)
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)
