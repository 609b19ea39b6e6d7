"""Factors of activations move into norms and modulations; the function stays."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
import onnx_ir as ir
import onnxruntime

from rtgen.passes.fold_input_scales import FoldInputScales

GENERATOR = np.random.default_rng(0)
CONSTANTS = {
    "factors": GENERATOR.uniform(0.5, 2, 64).astype(np.float16),
    "gain": GENERATOR.uniform(0.5, 2, 64).astype(np.float32),
    "offset": GENERATOR.standard_normal(64).astype(np.float32),
    "one": np.array(1, np.float32),
    "flat": np.array([1, -1, 64], np.int64),
    "frames": np.array([1, 3, -1, 64], np.int64),
    "narrow": np.array([1, -1, 32], np.int64),
    "table": GENERATOR.standard_normal((2, 64)).astype(np.float32),
}
NORM = "n = LayerNormalization<axis = -1>(x, gain, offset) c = Cast<to = 10>(n)"
MODULATED = """
    n = LayerNormalization<axis = -1>(x, gain)
    f = Reshape(n, frames)
    s = Add(scale, one)
    m = Mul(f, s)
    a = Add(m, shift)
    r = Reshape(a, flat)
    c = Cast<to = 10>(r)
"""
MUL = "y = Mul(c, factors)"


def folded(body, outputs="float16[1,t,64] y"):
    """The graph before and after, as functions of the inputs, and the model after."""
    signature = f"net (float[1,t,64] x, float[1,3,1,64] scale, float[1,3,1,64] shift) => ({outputs})"
    proto = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 24]> {signature} {{ {body} }}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in CONSTANTS.items())
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    model = ir.from_proto(proto)
    modified = FoldInputScales()(model).modified
    return proto, ir.to_proto(model), modified


def run(proto):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(1)
    shapes = {"x": (1, 12, 64), "scale": (1, 3, 1, 64), "shift": (1, 3, 1, 64)}
    inputs = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return session.run(None, {value.name: inputs[value.name] for value in session.get_inputs()})


@pytest.mark.parametrize(("body", "muls"), [(NORM, 2), (MODULATED, 3)])
def test_factors_move_to_vectors_and_the_function_stays(body, muls):
    before, after, modified = folded(f"{body} {MUL}")
    assert modified
    (exact,), (moved,) = run(before), run(after)
    assert np.abs(exact.astype(np.float64) - moved).max() <= 2 * np.finfo(np.float16).eps * np.abs(exact).max()
    names = {node.output[0] for node in after.graph.node if node.op_type == "Mul"}
    assert "y" not in names and len(names) == muls  # one of the modulation is its own
    last = next(node for node in after.graph.node if node.output[0] == after.graph.output[0].name)
    assert last.op_type == "Cast"


@pytest.mark.parametrize(
    "body",
    [
        f"{NORM} {MUL} z = Neg(c)",  # something else reads what would change
        f"c = Cast<to = 10>(x) {MUL}",  # the way ends at an input
        f"n = Gelu(x) c = Cast<to = 10>(n) {MUL}",  # and at a function that is not linear
        "n = LayerNormalization<axis = -1>(x, gain) h = Reshape(n, narrow) p = Neg(h) q = Reshape(p, flat) "
        "c = Cast<to = 10>(q) " + MUL,
        f"n = LayerNormalization<axis = -1>(x, gain) a = Add(n, x) c = Cast<to = 10>(a) {MUL}",  # one term only
        f"{NORM} d = Cast<to = 10>(scale) y = Mul(d, factors)",  # small already
    ],
)
def test_a_factor_stays_where_there_is_no_way_for_it(body):
    kind = "float16[1,3,1,64] y" if body.endswith("(d, factors)") else "float16[1,t,64] y"
    _, _, modified = folded(body, f"{kind}, float16[1,t,64] z" if "z =" in body else kind)
    assert not modified
