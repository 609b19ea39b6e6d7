"""AttachFunctions gives each rtgen node its body, once, and leaves other graphs alone."""

import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

from rtgen.passes.attach_functions import AttachFunctions  # noqa: E402
from rtgen.plugins.base import DOMAIN, DOMAIN_VERSION  # noqa: E402

CHUNK, RING = "float[1,1,2,4]", "float[1,1,6,4]"
ATTENTION = f"""<ir_version: 11, opset_import: ["" : 24, "rtgen" : 7]>
net ({CHUNK} x, {RING} a, {RING} b, int64[1] write, int64[1] valid) => ({CHUNK} z, {RING} e, {RING} f) {{
    y, c, d = rtgen.KVCacheAttention(x, x, x, a, b, write, valid)
    z, e, f = rtgen.KVCacheAttention(y, y, y, c, d, write, valid)
}}"""
PLAIN = '<ir_version: 11, opset_import: ["" : 24]> net (float[2] x) => (float[2] y) { y = Neg(x) }'


def test_a_node_of_a_plugin_gets_its_body_once():
    found = AttachFunctions()(ir.from_proto(onnx.parser.parse_model(ATTENTION)))
    assert found.modified
    assert [function.name for function in found.model.functions.values()] == ["KVCacheAttention"]
    assert found.model.graph.opset_imports[DOMAIN] == DOMAIN_VERSION
    proto = ir.to_proto(found.model)
    onnx.checker.check_model(proto)
    onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def test_a_graph_without_such_nodes_is_left_alone():
    found = AttachFunctions()(ir.from_proto(onnx.parser.parse_model(PLAIN)))
    assert not found.modified and not found.model.functions and DOMAIN not in found.model.graph.opset_imports
