"""The graphs of a build, executed as plainly as possible: what a package's results are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rtgen.build.graphs import read_tables
from rtgen.build.weight_places import weights_folder
from rtgen.engine.manifest import Component, ComponentEntry, TensorEntry, resolve_shape
from rtgen.errors import BuildError
from rtgen.runtime.cpu import thread_count
from rtgen.runtime.session import Array, Session, check_write


class ReferenceBackend:
    """ONNX Runtime on the processor with every graph optimization off, and no buffers kept between runs.

    Operators that have no float16 kernel are computed in float32. ``graphs`` is the folder of a build's graphs,
    ``weights`` the folder of the checkpoint that those refer to which are not quantized.
    """

    name = "reference"
    device = "CPU"

    def __init__(self, graphs: Path, weights: Path) -> None:
        self._graphs, self._weights = graphs, weights
        self._tables: Mapping[Component, ComponentEntry] = read_tables(graphs)

    def open(self, component: str) -> ReferenceSession:
        """Load a graph. Raises BuildError for one that ONNX Runtime does not accept."""
        table = self._tables[component]  # type: ignore[index]  # a KeyError for any other name is right
        return ReferenceSession(
            table, _load(self._graphs / table.file, weights_folder(table, self._graphs, self._weights))
        )

    def close(self) -> None:
        pass


class ReferenceSession:
    """One graph. Inputs are arrays in a dictionary, and a state's output is handed back as its input."""

    def __init__(self, component: ComponentEntry, native: Any) -> None:
        self.component = component
        self._native = native
        self._inputs: dict[str, Array] = {}
        self._outputs: dict[str, Array] = {}

    def allocate(self, sizes: Mapping[str, int]) -> None:
        self._inputs = {tensor.name: _zeros(tensor, sizes) for tensor in self.component.inputs}
        self._outputs = {}

    def write(self, name: str, value: Array) -> None:
        check_write(name, value, self._inputs[name].shape, self._inputs[name].dtype)
        self._inputs[name] = value.copy()

    def copy(self, name: str, source: Session, source_name: str) -> None:
        self.write(name, source.read(source_name))

    def run(self) -> None:
        names = [tensor.name for tensor in self.component.outputs]
        self._outputs = dict(zip(names, self._native.run(names, self._inputs), strict=True))
        for state in self.component.states:
            self._inputs[state.input] = self._outputs[state.output]

    def read(self, name: str) -> Array:
        return self._outputs[name]

    def reset(self) -> None:
        for state in self.component.states:
            self._inputs[state.input] = np.zeros_like(self._inputs[state.input])

    def close(self) -> None:
        self._native = None
        self._inputs, self._outputs = {}, {}


def _zeros(tensor: TensorEntry, sizes: Mapping[str, int]) -> Array:
    return np.zeros(resolve_shape(tensor.shape, sizes), np.dtype(tensor.dtype))


def _load(graph: Path, weights: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = thread_count()
    options.log_severity_level = 3  # errors come as exceptions
    # The weights are not beside the graph, which is a stage of the store; they are read from where they are.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights.absolute()))
    try:
        return onnxruntime.InferenceSession(standard(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # every failure of the library is its own class, derived from Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BuildError(f"ONNX Runtime cannot load {graph.name}: {reason}", hint="rtgen doctor") from error


def standard(graph: Path) -> bytes:
    """The graph with every plugin's own body, which any compiler executes; those for TensorRT are changed."""
    import onnx_ir as ir

    from rtgen.passes.attach_functions import AttachFunctions
    from rtgen.passes.base import run_passes

    content: bytes = ir.to_proto(run_passes(ir.load(graph), [AttachFunctions()])).SerializeToString()
    return content
