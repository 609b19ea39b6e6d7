import numpy as np
import pytest

pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

import onnx_ir as ir  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from rtgen.passes.gather_stored import GatherStored  # noqa: E402

TABLE = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float16)


def model(shared):
    """Rows of a float16 table, converted and negated; ``shared``: the converted table is an output too."""
    nodes = [
        helper.make_node("Cast", ["table"], ["converted"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["converted", "ids"], ["rows"]),
        helper.make_node("Neg", ["rows"], ["y"]),
        helper.make_node("Transpose", ["converted"], ["turned"]),
    ]
    outputs = [("y", [3, 4]), ("turned", [4, 7])]
    graph = helper.make_graph(
        nodes if shared else nodes[:3],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info(*out[:1], TensorProto.FLOAT, out[1]) for out in outputs[: 1 + shared]],
        [numpy_helper.from_array(TABLE, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("shared", [False, True])
def test_rows_are_converted_after_they_are_looked_up(shared):
    result = GatherStored()(ir.from_proto(model(shared)))
    assert result.modified
    (gather,) = [node for node in result.model.graph if node.op_type == "Gather"]
    assert gather.inputs[0].name == "table" and [use.node.op_type for use in gather.outputs[0].uses()] == ["Cast"]
    assert [node.op_type for node in result.model.graph].count("Cast") == 1 + shared
    proto = ir.to_proto(result.model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.array([5, 0, 5])
    assert np.array_equal(session.run(["y"], {"ids": ids})[0], -TABLE[ids].astype(np.float32))
    assert not GatherStored()(result.model).modified
