"""Functions are put in the place of their nodes, without their Ifs, and compute the same."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

from rtgen.passes.inline_functions import InlineFunctions  # noqa: E402

TEXT = """
<ir_version: 11, opset_import: ["" : 24, "rtgen" : 1]>
net (float[3] x) => (float[3] y, float[3] z) {
    node = rtgen.Turn <negative = 1> (x)
    y = rtgen.Turn <negative = 0> (node)
    z = rtgen.Other (y)
}
<domain: "rtgen", opset_import: ["" : 24]>
Turn <negative: int = 0> (x) => (turned) {
    two = Constant <value_float = 2.0> ()
    twice = Mul (x, two)
    flag = Constant <value_int: int = @negative> ()
    is_negative = Cast <to = 9> (flag)
    turned = If (is_negative) <
        then_branch = yes () => (minus) {
            one = Constant <value_float = 1.0> ()
            more = Add (twice, one)
            minus = Neg (more)
        },
        else_branch = no () => (same) { same = Identity (twice) }
    >
}
<domain: "rtgen", opset_import: ["" : 24]>
Other (x) => (y) {
    y = Abs (x)
}
"""


def run(model):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.array([1, -2, 3], np.float32)})


def test_named_functions_are_inlined_with_the_branch_that_is_taken_and_others_stay():
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    before = run(model)
    assert InlineFunctions({"Turn"})(model).modified
    assert "If" not in {node.op_type for node in model.graph.all_nodes()}
    assert [node.op_type for node in model.graph if node.domain == "rtgen"] == ["Other"]
    assert [key[1] for key in model.functions] == ["Other"]
    np.testing.assert_array_equal(run(model), before)
    np.testing.assert_array_equal(before[0], [-6, 6, -14])


def test_names_of_nodes_and_values_are_unique():
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    InlineFunctions({"Turn"})(model)
    values = [value.name for node in model.graph for value in node.outputs]
    nodes = [node.name for node in model.graph if node.name]
    assert len(set(values)) == len(values) and len(set(nodes)) == len(nodes)


def test_a_graph_without_such_nodes_is_left():
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    count = len(list(model.graph))
    assert not InlineFunctions({"Missing"})(model).modified and len(list(model.graph)) == count
