"""FixDimension makes a symbolic dimension a number, in the graph's own inputs and outputs and nowhere else."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

from rtgen.passes.fix_dimension import FixDimension  # noqa: E402

TEXT = """<ir_version: 11, opset_import: ["" : 24]>
net (float[ring,2] x, float[rows] other, float[1] one) => (float[ring,2] y, float[rows] kept)
    <float[ring,2] z, float[rows] w> {
    z = Mul(x, one)
    w = Mul(other, one)
    y = Neg(z)
    kept = Neg(w)
}"""


def shape(value):
    return None if value.shape is None else [str(size) for size in value.shape]


def test_the_dimension_is_fixed_and_shapes_inside_are_left_to_inference():
    found = FixDimension("ring", 12)(ir.from_proto(onnx.parser.parse_model(TEXT)))
    graph = found.model.graph
    assert found.modified
    assert [shape(value) for value in graph.inputs] == [["12", "2"], ["rows"], ["1"]]
    assert [shape(value) for value in graph.outputs] == [["12", "2"], ["rows"]]
    assert {value.name: shape(value) for node in graph for value in node.outputs if value.name in "zw"} == {
        "z": None, "w": ["rows"],
    }  # fmt: skip
    session = onnxruntime.InferenceSession(
        ir.to_proto(found.model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    one = np.ones(1, np.float32)
    assert session.run(None, {"x": np.ones((12, 2), np.float32), "other": one, "one": one})[0].shape == (12, 2)


def test_a_dimension_that_does_not_occur_changes_nothing():
    assert not FixDimension("columns", 12)(ir.from_proto(onnx.parser.parse_model(TEXT))).modified
