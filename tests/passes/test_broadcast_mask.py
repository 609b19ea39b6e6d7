import numpy as np
import pytest

pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")

import onnx_ir as ir  # noqa: E402
from onnx import parser  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from rtgen.passes.broadcast_mask import BroadcastMask  # noqa: E402

MODEL = """
<ir_version: 10, opset_import: ["": 24, "my": 1]>
network (float[1, 2, T, 8] q, float[1, 2, S, 8] k, float[1, 2, S, 8] v, bool[1, 1, 1, S] row, int64[4] shape)
    => (float[1, 2, T, 8] y)
{
    y = my.Masked (q, k, v, row, shape)
}
<domain: "my", opset_import: ["": 24]>
Masked (q, k, v, row, shape) => (y)
{
    copied = Identity (shape)
    mask = Expand (row, copied)
    y = Attention (q, k, v, mask)
}
"""


def evaluate(model, feeds):
    return ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)[0]


def test_the_mask_is_not_expanded_and_the_numbers_stay():
    model = ir.from_proto(parser.parse_model(MODEL))
    random = np.random.default_rng(0)
    feeds = {
        name: random.standard_normal((1, 2, size, 8)).astype(np.float32)
        for name, size in {"q": 5, "k": 12, "v": 12}.items()
    }
    feeds |= {"row": np.arange(12)[None, None, None] < 7, "shape": np.array([1, 1, 5, 12])}
    before = evaluate(model, feeds)
    assert BroadcastMask()(model).modified
    (body,) = model.functions.values()
    assert [node.op_type for node in body] == ["Attention"]  # what made the shape is gone too
    np.testing.assert_allclose(evaluate(model, feeds), before, atol=1e-6)
    assert not np.allclose(evaluate(model, feeds | {"row": feeds["row"] | True}), before)
    assert not BroadcastMask()(model).modified


def test_other_masks_stay():
    text = MODEL.replace("Expand (row, copied)", "Not (row)").replace("copied = Identity (shape)\n", "")
    model = ir.from_proto(parser.parse_model(text))
    assert not BroadcastMask()(model).modified
