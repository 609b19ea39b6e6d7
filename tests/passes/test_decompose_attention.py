import numpy as np
import pytest

pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import onnx_ir as ir  # noqa: E402
from onnx import parser  # noqa: E402

from rtgen.passes.decompose_attention import DecomposeAttention  # noqa: E402


def model(heads, width, attributes="", mask=False):
    shape = f"[N, {heads}, T, {width}]"
    inputs = ", ".join(f"float{shape} {name}" for name in "qkv") + (", bool[T, T] mask" if mask else "")
    text = f"""
    <ir_version: 10, opset_import: ["": 24]>
    network ({inputs}) => (float{shape} y)
    {{
        scores = Attention {attributes} (q, k, v{", mask" if mask else ""})
        y = Neg (scores)
    }}
    """
    return ir.from_proto(parser.parse_model(text))


def run(model, feeds):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize(("heads", "width"), [(1, 32), (2, 320), (1, 384)])
@pytest.mark.parametrize("attributes", ["", "<scale = 0.3, is_causal = 0>"])
def test_attention_without_a_kernel_is_written_out_and_the_numbers_stay(heads, width, attributes):
    attention = model(heads, width, attributes)
    random = np.random.default_rng(width)
    feeds = {name: random.standard_normal((3, heads, 20, width)).astype(np.float32) for name in "qkv"}
    before = run(attention, feeds)
    assert DecomposeAttention()(attention).modified
    assert [node.op_type for node in attention.graph] == [
        "Constant", "Mul", "Transpose", "MatMul", "Softmax", "MatMul", "Neg",
    ]  # fmt: skip
    np.testing.assert_allclose(run(attention, feeds), before, atol=1e-5)
    assert not DecomposeAttention()(attention).modified


@pytest.mark.parametrize(
    "kept", [model(2, 32), model(12, 256), model(1, 32, mask=True), model(1, 32, "<is_causal = 1>")],
    ids=["heads", "wide", "masked", "causal"],
)  # fmt: skip
def test_attention_that_a_kernel_serves_stays(kept):
    assert not DecomposeAttention()(kept).modified
