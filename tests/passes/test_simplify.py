"""Simplify folds what depends on constants, and nothing that reads a weight."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

from rtgen.passes.base import run_passes  # noqa: E402
from rtgen.passes.simplify import Simplify  # noqa: E402

WEIGHT = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def model():
    proto = onnx.parser.parse_model(
        """<ir_version: 11, opset_import: ["" : 24]>
        net (float[2,3] x) => (float[2,2,2] y) {
            turned = Transpose <perm = [1, 0]> (weight)
            z = MatMul(x, turned)
            two = Constant <value_ints = [2]> ()
            half = Div(table, two)
            both = Concat <axis = 0> (two, two)
            shape = Concat <axis = 0> (both, half)
            y = Reshape(z, shape)
        }"""
    )
    proto.graph.initializer.extend(
        [onnx.numpy_helper.from_array(WEIGHT, "weight"), onnx.numpy_helper.from_array(np.array([4]), "table")]
    )
    return ir.from_proto(proto)


def test_shapes_fold_and_weights_stay_as_they_are_stored():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = run_passes(model(), [Simplify(frozenset({"weight"}))])
    assert sorted(node.op_type for node in found.graph) == ["MatMul", "Reshape", "Transpose"]
    np.testing.assert_array_equal(found.graph.initializers["weight"].const_value.numpy(), WEIGHT)
    session = onnxruntime.InferenceSession(ir.to_proto(found).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], (x @ WEIGHT.T).reshape(2, 2, 2), rtol=1e-6)


def test_an_initializer_that_is_no_weight_is_folded():
    found = run_passes(model(), [Simplify(frozenset())])
    assert sorted(node.op_type for node in found.graph) == ["MatMul", "Reshape"]
