"""A linear layer as the quantize step left it: what the passes that rewrite it are given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rtgen.passes.linear_layers import LinearLayer, linear_layers


@dataclass(frozen=True)
class QuantizedLayer:
    """A decision of the quantize step, and where its numbers lie (``rtgen.quantize.result`` describes both)."""

    initializer: str
    """The weight's name in the graph."""
    weights: Literal["int4", "int8", "fp8", "fp4"]
    tensors: Mapping[str, ir.ExternalTensor]
    """By what follows the layer's name in the weight file, such as ``codes``. Codes and e4m3 scales have their own
    element type and shape here, though the file has bytes."""
    block: int | None = None
    activations: Literal["int8", "fp8", "fp4", "int4"] | None = None
    group: int | None = None
    rotated: bool = False

    @property
    def is_dynamic(self) -> bool:
        """Whether one scale of the whole input is found each time the layer runs."""
        return self.activations == "int8" and "input_scale" not in self.tensors

    def scalar(self, name: str) -> float:
        """A tensor of one number."""
        return float(self.tensors[name].numpy().reshape(()))


def located(graph: ir.Graph, layers: Iterable[QuantizedLayer]) -> Iterator[tuple[QuantizedLayer, LinearLayer]]:
    """Each of ``layers`` with its place in the graph. Raises KeyError for one that has none."""
    places = linear_layers(graph)
    for layer in layers:
        yield layer, places[layer.initializer]


def add_stored(graph: ir.Graph, tensor: ir.ExternalTensor) -> ir.Value:
    """An initializer whose numbers lie in the weight file, or the one of that name that is there already."""
    if tensor.name in graph.initializers:
        return graph.initializers[tensor.name]
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def add_constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """A small initializer inside the graph, or the one of that name that is there already."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def result_of(node: ir.Node, name: str, dtype: ir.DataType | None, shape: ir.Shape | None) -> ir.Value:
    """The output of a new node, named and typed."""
    value = node.outputs[0]
    value.name, value.shape = name, shape
    value.type = ir.TensorType(dtype) if dtype is not None else None
    return value


def insert_before_readers(graph: ir.Graph, added: Iterable[ir.Node], readers: Iterable[ir.Node]) -> None:
    """Put nodes before the first of ``readers``, where whatever those read exists already."""
    wanted = set(readers)
    graph.insert_before(next(node for node in graph if node in wanted), list(added))


def put_after(graph: ir.Graph, node: ir.Node, added: list[ir.Node]) -> None:
    """Put nodes after one whose output the last of them reads first; whatever read that output reads theirs."""
    value = node.outputs[0]
    ir.convenience.replace_all_uses_with(value, added[-1].outputs[0], replace_graph_outputs=True)
    added[-1].replace_input_with(0, value)  # this use was replaced too
    graph.insert_after(node, added)
