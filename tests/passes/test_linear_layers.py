"""Which initializers are the matrices of linear layers."""

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from rtgen.passes.linear_layers import linear_layers
from tests.passes.linear_net import linear_net

SQUARE = (64, 64)


def test_only_matrices_of_products_are_found():
    body = [
        "row = Gather(looked_up, n)",
        "a = Add(x, row)",
        "b = linear(a, up)",
        "c = linear(b, down)",
        "d = linear(c, looked_up)",
        "e = MatMul(d, not_transposed)",
        "t = Transpose<perm = [1, 0]>(given_out)",
        "f = MatMul(e, t)",
        "y = Add(f, bias)",
    ]
    made = linear_net(
        "T[2,64] x, int64 n",
        "T[2,64] y, T[64,64] t",
        body,
        up=(96, 64),
        down=(64, 96),
        looked_up=SQUARE,
        not_transposed=SQUARE,
        given_out=SQUARE,
        bias=(64,),
    )
    assert linear_layers(made.model.graph).keys() == {"up", "down"}


@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_a_layer_says_where_it_is_and_what_it_computes_in(stored):
    body = ["b = linear(x, first)", "c = linear(b, second)", "y = linear(c, first)"]
    made = linear_net("T[2,64] x", "T[2,64] y", body, stored=stored, first=SQUARE, second=SQUARE)
    if stored == "float32":  # its Cast has two readers then, and the initializer one
        assert len(made.model.graph.initializers["first"].uses()) == 1
    layer = linear_layers(made.model.graph)["first"]
    assert layer.shape == SQUARE and str(layer.dtype) == "FLOAT16"
    assert layer.matrix.name == ("first" if stored == "float16" else "first_cast")
    assert [node.outputs[0].name for node in layer.products] == ["b", "y"]
