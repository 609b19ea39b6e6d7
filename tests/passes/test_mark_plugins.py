"""MarkPlugins names TensorRT's plugin at the nodes that have a kernel, and other runtimes do not mind."""

import dataclasses

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

from rtgen.passes.mark_plugins import MarkPlugins, PluginNode, marked_nodes  # noqa: E402
from rtgen.plugins.base import Plugin  # noqa: E402

BODY = """<domain: "rtgen", opset_import: ["" : 24]>
Scale <factor: int = 2> (x) => (y) { number = Constant <value_int: int = @factor> ()
                                     like = CastLike (number, x)  y = Mul (x, like) }"""
SCALE = Plugin(
    "Scale", ("x",), ("y",), BODY, {"factor": 2}, kernel=object(), input_types=("float16",)
)  # no part of a kernel is used here
PLAIN = dataclasses.replace(SCALE, kernel=None)


def model(dtype="float16"):
    model = onnx.parser.parse_model(
        f'<ir_version: 11, opset_import: ["" : 24, "rtgen" : 1]> net ({dtype}[4] x) => ({dtype}[4] z) '
        "{ n = Neg(x)  y = rtgen.Scale <factor = 3> (n)  z = rtgen.Scale (y) }"
    )
    model.functions.append(SCALE.function())
    return ir.from_proto(model)


def marks(model):
    return [
        {name: value.value for name, value in node.attributes.items() if name.startswith("plugin_")}
        for node in model.graph
    ]


def test_nodes_with_a_kernel_are_marked_and_still_run_as_functions():
    found = MarkPlugins([SCALE])(model())
    mark = {"plugin_namespace": "rtgen", "plugin_version": "1"}
    assert found.modified and marks(found.model) == [{}, mark, mark]
    assert [node.attributes["factor"].value for node in list(found.model.graph)[1:]] == [3, 2]
    assert marked_nodes(found.model, [SCALE]) == [PluginNode("Scale", {"factor": factor}) for factor in (3, 2)]
    session = onnxruntime.InferenceSession(
        ir.to_proto(found.model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.arange(4, dtype=np.float16)
    assert np.array_equal(session.run(None, {"x": x})[0], -6 * x)


@pytest.mark.parametrize(("plugins", "dtype"), [([], "float16"), ([PLAIN], "float16"), ([SCALE], "float")])
def test_nodes_without_a_kernel_for_their_types_are_left_alone(plugins, dtype):
    graph = model(dtype)
    for node in graph.graph:
        node.outputs[0].dtype = graph.graph.inputs[0].dtype
    found = MarkPlugins(plugins)(graph)
    assert not found.modified and not any(marks(found.model)) and not marked_nodes(found.model, [SCALE])
