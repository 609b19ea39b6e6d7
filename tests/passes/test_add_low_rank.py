"""The low-rank branch adds to what the codes give, from the input as it was before it was quantized."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from rtgen.passes.add_low_rank import AddLowRank
from rtgen.passes.quantize_activations import QuantizeActivations
from rtgen.passes.quantize_weights import QuantizeWeights
from rtgen.passes.scale_inputs import ScaleInputs
from tests.passes.linear_net import close, linear_net

X = np.random.default_rng(1).standard_normal((5, 128))
FACTORS = np.random.default_rng(2).uniform(0.5, 2, 128).astype(np.float16)
PASSES = [ScaleInputs, AddLowRank, QuantizeActivations, QuantizeWeights]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_branch_reads_the_scaled_input_before_its_codes(tmp_path, dtype):
    made, x = linear_net("T[5,128] x", "T[5,64] y", ["y = linear(x, w)"], dtype, w=(64, 128)), X.astype(dtype)
    choice = {"weights": "int8", "activations": "int8", "amax": 6.0, "rank": 8, "pre_scale": FACTORS}
    layer = made.quantize(tmp_path, PASSES, w=choice)["w"]
    scaled = x * FACTORS.astype(dtype)
    step = np.dtype(dtype).type(6 / 127)
    codes = np.rint(scaled / np.float32(step)).clip(-128, 127) * np.float64(step)
    down, up = (layer.tensors[f"w.low_rank_{part}"].astype(np.float64) for part in ("down", "up"))
    exact = codes @ layer.matrix.T.astype(np.float64) + scaled.astype(np.float64) @ down.T @ up.T
    close(made.run(x=x)[0], exact, dtype)
    assert made.model.graph.outputs[0].producer().op_type == "Add"


def test_a_branch_of_full_rank_makes_up_for_all_that_codes_miss(tmp_path):
    made, x = linear_net("T[5,128] x", "T[5,64] y", ["y = linear(x, w)"], w=(64, 128)), X.astype(np.float16)
    made.quantize(tmp_path, [AddLowRank, QuantizeWeights], w={"weights": "int4", "rank": 64})
    close(made.run(x=x)[0], x.astype(np.float64) @ made.weights["w"].T.astype(np.float64))


def test_layers_without_a_branch_are_left(tmp_path):
    made = linear_net("T[5,128] x", "T[5,64] y", ["y = linear(x, w)"], w=(64, 128))
    before = list(made.model.graph)
    assert not AddLowRank([])(made.model).modified and list(made.model.graph) == before
