"""Matrices as codes and scales compute what the dequantized matrices compute."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from rtgen.passes.quantize_weights import QuantizeWeights
from tests.passes.linear_net import close, linear_net

X = np.random.default_rng(1).standard_normal((2, 128))
TYPES = {"int4": "INT4", "int8": "INT8", "fp8": "FLOAT8E4M3FN", "fp4": "FLOAT4E2M1"}


def net(**types):
    body = ["q = linear(x, wq)", "k = linear(x, wk)", "h = Mul(q, k)", "b = Add(h, x)", "y = linear(b, wo)"]
    return linear_net("T[2,128] x", "T[2,192] y", body, wq=(128, 128), wk=(128, 128), wo=(192, 128), **types)


def expected(matrices, x):
    q, k, o = (np.asarray(matrices[name], np.float64).T for name in ("wq", "wk", "wo"))
    return ((x @ q) * (x @ k) + x) @ o


@pytest.mark.parametrize("weights", ["int4", "int8", "fp8"])
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("float16", "float16"), ("float16", "float32"), ("float32", "float16"), ("float32", "float32")],
)
def test_the_graph_computes_with_the_dequantized_matrices(tmp_path, weights, dtype, stored):
    made = net(dtype=dtype, stored=stored)
    layers = made.quantize(tmp_path, [QuantizeWeights], **{name: {"weights": weights} for name in made.weights})
    initializers = made.model.graph.initializers
    assert not set(initializers) & set(made.weights)
    assert {str(initializers[f"{name}.codes"].dtype) for name in made.weights} == {TYPES[weights]}
    x = X.astype(dtype)
    matrices = {name: layer.matrix for name, layer in layers.items()}
    if dtype == "float16" or weights == "int4":  # dequantized numbers of blocks are float16
        matrices = {name: matrix.astype(np.float16) for name, matrix in matrices.items()}
    found = made.run(x=x)[0]
    assert found.dtype == dtype
    reference = expected(matrices, x.astype(np.float64))
    limit = {"float16": 6e-3, "float32": 2e-6}[dtype]
    assert np.abs(found - reference).max() < limit * np.abs(reference).max()


def test_fp4_codes_and_both_scales_are_where_the_nodes_say(tmp_path):
    made = net()
    layers = made.quantize(tmp_path, [QuantizeWeights], wq={"weights": "fp4"}, wk={"weights": "fp4"})
    values = {value.name: value for value in made.model.graph.initializers.values()}
    powers = set()
    for name, layer in layers.items():
        (transpose,) = [
            node
            for node in made.model.graph
            if node.op_type == "Transpose" and _origin(node.inputs[0]) is values[f"{name}.codes"]
        ]
        outer = transpose.inputs[0].producer()
        inner = outer.inputs[1].producer().inputs[0].producer()
        assert (outer.attributes["axis"].as_int(), outer.attributes["block_size"].as_int()) == (1, 16)
        codes, scales, power = outer.inputs[0], inner.inputs[0], inner.inputs[1]
        assert (str(codes.dtype), str(scales.dtype), str(power.dtype)) == ("FLOAT4E2M1", "FLOAT8E4M3FN", "FLOAT")
        powers.add(float(power.const_value.numpy()))
        (product,) = [use.node for use in transpose.outputs[0].uses()]
        (after,) = [use.node for use in product.outputs[0].uses()]
        assert after.op_type == "Mul"
        blocks = codes.const_value.numpy().astype(np.float64).reshape(128, 8, 16)
        steps = scales.const_value.numpy().astype(np.float64)[..., None] * power.const_value.numpy()
        matrix = (blocks * steps).reshape(128, 128) * after.inputs[1].const_value.numpy().astype(np.float64)[:, None]
        np.testing.assert_allclose(matrix, layer.matrix, rtol=2**-11)
    assert len(powers) == 1


def _origin(value):
    while value.producer() is not None:
        value = value.producer().inputs[0]
    return value


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_layers_of_one_input_have_one_scale_before_their_products(tmp_path, weights):
    made = net()
    made.weights["wk"] = made.weights["wk"] * np.float16(5)
    made.quantize(tmp_path, [QuantizeWeights], **{name: {"weights": weights} for name in made.weights})
    scales = {name: made.model.graph.initializers[f"{name}.scale"].const_value.numpy() for name in made.weights}
    assert scales["wq"] == scales["wk"] != scales["wo"]
    assert all(np.frexp(scale)[0] == 0.5 for scale in scales.values())  # powers of two: codes times it are exact
    rests = {name: made.model.graph.initializers[f"{name}.rest"].const_value.numpy() for name in made.weights}
    assert max(rest.max() for rest in rests.values()) <= 1 and rests["wq"].max() <= 0.25


def test_sums_of_integer_products_stay_far_from_the_limits_of_half_precision(tmp_path):
    """What comes out of a product of codes before its rows are scaled; TensorRT keeps it in float16."""
    made = linear_net("T[4,1152] x", "T[4,64] y", ["y = linear(x, w)"], w=(64, 1152))
    made.weights["w"] = np.full((64, 1152), 0.5, np.float16) * np.geomspace(1e-3, 1, 64, dtype=np.float16)[:, None]
    layer = made.quantize(tmp_path, [QuantizeWeights], w={"weights": "int8"})["w"]
    power = made.model.graph.initializers["w.scale"].const_value.numpy().astype(np.float64)
    x = np.full((4, 1152), 3, np.float16)
    sums = x.astype(np.float64) @ layer.tensors["w.codes"].view(np.int8).astype(np.float64).T
    assert np.abs(sums).max() > 4e5 and np.abs(sums * power).max() < 4000
    close(made.run(x=x)[0], x.astype(np.float64) @ layer.matrix.T.astype(np.float64))


def test_without_layers_nothing_changes():
    assert not QuantizeWeights([])(net().model).modified
