"""Activations that pass through codes: what is computed, and which layers share the nodes."""

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from rtgen.passes.quantize_activations import QuantizeActivations
from rtgen.passes.quantize_weights import QuantizeWeights
from tests.passes.linear_net import close, linear_net

X = np.random.default_rng(1).standard_normal((1, 5, 128)) * 2
BODY = ["q = linear(x, wq)", "k = linear(x, wk)", "v = linear(x, wv)", "h = Mul(q, k)", "y = Add(h, v)"]
SHAPE = (64, 128)


def net(dtype="float16"):
    return linear_net("T[1,5,128] x", "T[1,5,64] y", BODY, dtype, wq=SHAPE, wk=SHAPE, wv=SHAPE)


def rounded(x, kind, amax):
    """``x`` after quantization with a scale as the graph has it."""
    if kind == "int8":
        scale = x.dtype.type(amax / 127)
        return np.rint(x / np.float32(scale)).clip(-128, 127) * np.float64(scale)
    scale = x.dtype.type(amax / 448)
    codes = (x.astype(np.float32) / np.float32(scale)).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float64) * np.float64(scale)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("amax", [2.0, 7.0])  # the first clips
def test_the_graph_computes_with_rounded_inputs_and_matrices(tmp_path, kind, dtype, amax):
    made, x = net(dtype), X.astype(dtype)
    choice = {"weights": kind, "activations": kind, "amax": amax}
    layers = made.quantize(tmp_path, [QuantizeActivations, QuantizeWeights], **dict.fromkeys(made.weights, choice))
    inner = rounded(x, kind, amax)
    q, k, v = (inner @ layers[name].matrix.T.astype(np.float64) for name in ("wq", "wk", "wv"))
    close(made.run(x=x)[0], q * k + v, dtype)


@pytest.mark.parametrize("kind", ["int8", "fp8", "fp4"])
def test_layers_of_one_input_share_its_codes_if_their_scales_agree(tmp_path, kind):
    node = "TRT_FP4DynamicQuantize" if kind == "fp4" else "QuantizeLinear"
    choice = {"weights": kind, "activations": kind}
    for number, other in enumerate(({}, {"amax": 3.0})):
        made = net()
        made.quantize(tmp_path / str(number), [QuantizeActivations], wq=choice, wk=choice, wv=choice | other)
        assert made.count(node) == number + 1
        products = [node for node in made.model.graph if node.op_type == "MatMul"]
        assert len({product.inputs[0] for product in products}) == number + 1


def test_fp4_has_the_nodes_that_tensorrt_reads(tmp_path):
    made = net()
    choice = {"weights": "fp4", "activations": "fp4", "amax": 6.0 * 448 / 1024}
    made.quantize(tmp_path, [QuantizeActivations], wq=choice)
    (quantize,) = [node for node in made.model.graph if node.domain == "trt"]
    assert quantize.op_type == "TRT_FP4DynamicQuantize" and made.model.graph.opset_imports["trt"] == 1
    attributes = {name: attribute.as_int() for name, attribute in quantize.attributes.items()}
    assert attributes == {"axis": -1, "block_size": 16, "scale_type": 17}  # ONNX's number of E4M3
    assert quantize.inputs[0].name == "x" and float(quantize.inputs[1].const_value.numpy()) == 2.0**-10
    assert [str(value.dtype) for value in quantize.outputs] == ["FLOAT4E2M1", "FLOAT8E4M3FN"]
    (outer,) = [use.node for use in quantize.outputs[0].uses()]
    (inner,) = [use.node for use in quantize.outputs[1].uses()]
    assert inner.inputs[1] is quantize.inputs[1] and outer.inputs[1].producer().inputs[0] is inner.outputs[0]
    (product,) = [use.node for use in outer.outputs[0].uses()]
    assert product.op_type == "MatMul"


def test_scales_below_the_normal_numbers_of_half_precision_become_the_least_of_them(tmp_path):
    made, x = net(), (X * 1e-3).astype(np.float16)
    choice = {"weights": "int8", "activations": "int8", "amax": 6e-3}
    layers = made.quantize(tmp_path, [QuantizeActivations, QuantizeWeights], wq=choice)
    plain = [x.astype(np.float64) @ made.weights[name].T.astype(np.float64) for name in ("wk", "wv")]
    inner = rounded(x, "int8", 127 * 2.0**-14) @ layers["wq"].matrix.T.astype(np.float64)
    close(made.run(x=x)[0], inner * plain[0] + plain[1])


def test_layers_without_quantized_activations_are_left(tmp_path):
    made = net()
    made.quantize(tmp_path, [QuantizeWeights], wq={"weights": "int4"})
    assert made.count("QuantizeLinear") == 0
    assert not QuantizeActivations([])(made.model).modified
