"""Inputs multiplied by pre-scales: the function stays, and layers share the product where they can."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from rtgen.passes.quantize_weights import QuantizeWeights
from rtgen.passes.scale_inputs import ScaleInputs
from tests.passes.linear_net import close, linear_net

X = np.random.default_rng(1).standard_normal((5, 128))
BODY = ["q = linear(x, wq)", "k = linear(x, wk)", "v = linear(x, wv)", "h = Mul(q, k)", "y = Add(h, v)"]
SHAPES = dict.fromkeys(("wq", "wk", "wv"), (64, 128))
FACTORS = np.random.default_rng(2).uniform(0.25, 4, 128).astype(np.float16)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_graph_multiplies_inputs_by_what_the_weights_are_divided_by(tmp_path, dtype):
    made, x = linear_net("T[5,128] x", "T[5,64] y", BODY, dtype, **SHAPES), X.astype(dtype)
    other = np.flip(FACTORS)
    smooth = {"weights": "int8", "pre_scale": FACTORS}
    choices = {"wq": smooth, "wk": smooth, "wv": smooth | {"pre_scale": other}}
    layers = made.quantize(tmp_path, [ScaleInputs, QuantizeWeights], **choices)
    matrices = {name: layer.matrix.T.astype(np.float64) for name, layer in layers.items()}
    scaled, turned = (np.asarray(x * factors.astype(dtype), np.float64) for factors in (FACTORS, other))
    close(made.run(x=x)[0], (scaled @ matrices["wq"]) * (scaled @ matrices["wk"]) + turned @ matrices["wv"], dtype)
    inputs = [node.inputs[0] for node in made.model.graph if node.op_type == "MatMul"]
    assert inputs[0] is inputs[1] and inputs[2] not in inputs[:2]


def test_layers_without_a_pre_scale_read_what_they_read(tmp_path):
    made = linear_net("T[5,128] x", "T[5,64] y", BODY, **SHAPES)
    made.quantize(tmp_path, [ScaleInputs], wk={"weights": "int8", "pre_scale": FACTORS})
    inputs = [node.inputs[0].name for node in made.model.graph if node.op_type == "MatMul"]
    assert inputs[0] == inputs[2] == "x" != inputs[1]
    assert not ScaleInputs([])(made.model).modified
