"""Integer products with scales found at run time: exact integers, shared codes, ONNX Runtime's own kernels."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime

from rtgen.passes.quantize_dynamically import QuantizeDynamically
from tests.passes.linear_net import close, linear_net

X = np.random.default_rng(1).standard_normal((1, 5, 128)).astype(np.float32) + np.float32(0.5)
BODY = ["q = linear(x, wq)", "k = linear(x, wk)", "h = Mul(q, k)", "y = linear(h, wo)"]
SHAPES = {"wq": (64, 128), "wk": (64, 128), "wo": (96, 64)}
CHOICE = {"weights": "int8", "activations": "int8", "amax": None}


def rounded(x):
    """DynamicQuantizeLinear of the ONNX standard, dequantized."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / np.float32(255))
    zero = np.rint(np.clip(-low / scale, 0, 255))
    codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    return (codes - zero) * np.float64(scale)


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_the_graph_computes_with_rounded_inputs_and_matrices(tmp_path, stored):
    made = linear_net("T[1,5,128] x", "T[1,5,96] y", BODY, "float32", stored, **SHAPES)
    layers = made.quantize(tmp_path, [QuantizeDynamically], **dict.fromkeys(SHAPES, CHOICE))
    q, k, o = (layers[name].matrix.T.astype(np.float64) for name in SHAPES)
    x = rounded(X)
    close(made.run(x=X)[0], rounded(((x @ q) * (x @ k)).astype(np.float32)) @ o, "float32")
    assert made.count("DynamicQuantizeLinear") == 2 and made.count("MatMulInteger") == 3
    assert made.count("MatMul") == 0 and not set(SHAPES) & set(made.model.graph.initializers)


def test_onnx_runtime_has_kernels_for_the_pattern(tmp_path):
    made = linear_net("T[1,5,128] x", "T[1,5,96] y", BODY, "float32", "float16", **SHAPES)
    made.quantize(tmp_path, [QuantizeDynamically], **dict.fromkeys(SHAPES, CHOICE))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node]
    assert sorted(ops) == [
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "MatMulIntegerToFloat",
        "Mul",
    ]


def test_half_precision_is_refused(tmp_path):
    made = linear_net("T[1,5,128] x", "T[1,5,96] y", BODY, **SHAPES)
    with pytest.raises(Exception, match="not in float32"):
        made.quantize(tmp_path, [QuantizeDynamically], wq=CHOICE)
