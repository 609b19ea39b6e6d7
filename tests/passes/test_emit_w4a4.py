"""Linear layers become W4A4Linear nodes that compute what the operator computes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx_ir as ir  # noqa: E402

from rtgen.passes.attach_functions import AttachFunctions  # noqa: E402
from rtgen.passes.emit_w4a4 import EmitW4A4  # noqa: E402
from rtgen.plugins.w4a4_linear import PLUGIN, torch_op  # noqa: E402
from tests.passes.linear_net import linear_net  # noqa: E402

X = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float16)
FACTORS = np.random.default_rng(2).uniform(0.5, 2, 128).astype(np.float16)
CHOICE = {"weights": "int4", "activations": "int4", "pre_scale": FACTORS, "rank": 8}


def attach(made):
    AttachFunctions()(made.model)
    ir.save(made.model, made.folder / "net.onnx")


def expected(layer, x):
    """By the torch op."""
    tensors = {name.split(".")[-1]: torch.from_numpy(value) for name, value in layer.tensors.items()}
    rows, columns = layer.matrix.shape
    tensors.setdefault("low_rank_down", torch.zeros(1, columns).half())
    tensors.setdefault("low_rank_up", torch.zeros(rows, 1).half())
    tensors["codes"] = tensors["codes"].view(torch.int8)
    return torch_op()(torch.from_numpy(x), *(tensors[name] for name in PLUGIN.inputs[1:]), 0).numpy()


@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("rank", [0, 8])
def test_a_layer_and_its_bias_become_one_node(tmp_path, stored, rank):
    body = ["h = linear(x, w)", "y = Add(h, w_bias)" if stored == "float16" else "y = Add(h, w_bias_cast)"]
    made = linear_net("T[5,128] x", "T[5,64] y", body, stored=stored, w=(64, 128), w_bias=(64,))
    layer = made.quantize(tmp_path, [EmitW4A4], w=CHOICE | {"rank": rank})["w"]
    attach(made)
    assert [node.op_type for node in made.model.graph] == ["W4A4Linear"]
    assert not {"w", "w_bias"} & made.model.graph.initializers.keys()
    codes = made.model.graph.initializers["w.codes"]
    assert codes.dtype == ir.DataType.INT8 and codes.shape.numpy() == (64, 64)
    found = made.run(x=X)[0]
    np.testing.assert_allclose(found, expected(layer, X), atol=2e-3)


def test_a_matrix_used_twice_and_one_without_bias_are_two_nodes_and_one(tmp_path):
    body = ["a = linear(x, w)", "b = linear(x, v)", "m = Neg(x)", "c = linear(m, w)", "s = Add(a, b)", "y = Sub(s, c)"]
    made = linear_net("T[5,128] x", "T[5,64] y", body, w=(64, 128), v=(64, 128))
    layers = made.quantize(tmp_path, [EmitW4A4], w=CHOICE, v=CHOICE)
    attach(made)
    assert made.count("W4A4Linear") == 3 and made.count("MatMul") == made.count("Transpose") == 0
    total = [expected(layers["w"], X), expected(layers["v"], X), -expected(layers["w"], -X)]
    np.testing.assert_allclose(made.run(x=X)[0], sum(part.astype(np.float32) for part in total), atol=2e-2)


def test_a_layer_whose_output_is_the_graph_s_keeps_the_name(tmp_path):
    made = linear_net("T[5,128] x", "T[5,64] y", ["y = linear(x, w)"], w=(64, 128))
    made.quantize(tmp_path, [EmitW4A4], w=CHOICE)
    assert [value.name for value in made.model.graph.outputs] == ["y"]
    assert made.model.graph.outputs[0].producer().op_type == "W4A4Linear"


def test_layers_of_other_formats_are_left(tmp_path):
    made = linear_net("T[5,128] x", "T[5,64] y", ["y = linear(x, w)"], w=(64, 128))
    choice = {"weights": "int4", "pre_scale": FACTORS}
    made.quantize(tmp_path, [], w=choice)
    assert not EmitW4A4(made.layers)(made.model).modified and made.count("MatMul") == 1


def test_float32_graphs_are_refused(tmp_path):
    made = linear_net("T[5,128] x", "T[5,64] y", ["y = linear(x, w)"], "float32", w=(64, 128))
    made.quantize(tmp_path, [], w=CHOICE)
    with pytest.raises(ValueError, match="not in float16"):
        EmitW4A4(made.layers)(made.model)


def test_a_bias_that_is_added_elsewhere_is_refused(tmp_path):
    body = ["h = linear(x, weight)", "n = Neg(h)", "y = Add(n, bias)"]
    made = linear_net("T[5,128] x", "T[5,64] y", body, weight=(64, 128), bias=(64,))
    made.quantize(tmp_path, [], weight=CHOICE)
    with pytest.raises(ValueError, match="bias of weight is not added right after"):
        EmitW4A4(made.layers)(made.model)
