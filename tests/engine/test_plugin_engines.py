"""TensorRT takes the plugins of marked nodes into engines, for every GPU, and counts their scratch memory."""

import sys

import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")

from rtgen.bench.cases import cases  # noqa: E402
from rtgen.bench.launches import output  # noqa: E402
from rtgen.engine import trt  # noqa: E402
from rtgen.engine.builder import EngineJob, build_engine  # noqa: E402
from rtgen.passes.attach_functions import AttachFunctions  # noqa: E402
from rtgen.passes.base import run_passes  # noqa: E402
from rtgen.passes.mark_plugins import MarkPlugins  # noqa: E402
from rtgen.plugins.registry import PLUGINS  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from tests.engine.plugin_worker import ACCUMULATE, BYTES_A_TOKEN  # noqa: E402

pytestmark = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")

CAPABILITIES = ["7.5", "8.0", "8.6", "8.9", "12.0"]
KERNELS = [plugin for plugin in PLUGINS.values() if plugin.kernel is not None]
TOKENS, PARTS = 32, 3


@pytest.fixture
def build(tmp_path):
    """An engine of a graph with the node between others, for ``T`` up to TOKENS."""

    def build_(capability, plugins):
        model = onnx.parser.parse_model(
            '<ir_version: 11, opset_import: ["" : 24, "rtgen" : 1]> '
            "net (float16[T,64] x, float16[8,64] total) => (float16[T,64] z, float16[8,64] total_out) "
            f"{{ r = Relu (x)  y, total_out = rtgen.Accumulate <parts = {PARTS}> (r, total)  z = Relu (y) }}"
        )
        model.functions.append(ACCUMULATE.function())
        ir.save(run_passes(ir.from_proto(model), [MarkPlugins(plugins)]), tmp_path / "net.onnx")
        profile = {"x": ((1, 64), (4, 64), (TOKENS, 64))}
        job = EngineJob(
            "net", "tensorrt_rtx", tmp_path / "net.onnx", tmp_path, tmp_path / "net.engine", capability, (profile,)
        )
        worker = [sys.executable, "-m", "tests.engine.plugin_worker"]
        return build_engine(job, SilentProgress(), stage="engine", worker=worker)

    return build_


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_marked_node_becomes_the_plugin(build, capability):
    result = build(capability, [ACCUMULATE])
    assert result.plugins == {"Accumulate": 1} and result.layers == 3
    assert b"Accumulate" in result.path.read_bytes()
    scratch = BYTES_A_TOKEN * TOKENS * PARTS
    assert scratch <= result.activation_bytes < scratch + 4 * TOKENS * 64 * 2


def test_the_body_of_a_node_that_is_not_marked_is_built(build):
    result = build("8.9", [])
    assert result.plugins == {} and result.layers > 3
    assert result.activation_bytes < BYTES_A_TOKEN


def alone(plugin, case):
    """A graph of one node, whose inputs and outputs are those of the graph."""
    made = [output(list(case.inputs.values()), plugin, number) for number in range(len(plugin.outputs))]
    kinds = {"float16": "FLOAT16", "float32": "FLOAT", "int8": "INT8", "int64": "INT64"}

    def infos(names, tensors):
        return [
            onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kinds[tensor.dtype]), tensor.shape)
            for name, tensor in zip(names, tensors, strict=True)
        ]

    inputs, outputs = infos(plugin.inputs, case.inputs.values()), infos(plugin.outputs, made)
    node = onnx.helper.make_node(plugin.name, plugin.inputs, plugin.outputs, domain="rtgen", **case.attributes)
    domains = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid("rtgen", 1)]
    graph = onnx.helper.make_graph([node], "net", inputs, outputs)
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=domains, ir_version=11))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("plugin", KERNELS, ids=lambda plugin: plugin.name)
def test_every_plugin_is_built_at_the_size_of_wan(tmp_path, plugin, capability):
    case = cases(plugin.name)[0]
    graph = run_passes(alone(plugin, case), [AttachFunctions(), MarkPlugins(PLUGINS.values())])
    ir.save(graph, tmp_path / "net.onnx")
    job = EngineJob("net", "tensorrt_rtx", tmp_path / "net.onnx", tmp_path, tmp_path / "net.engine", capability)
    result = build_engine(job, SilentProgress(), stage="engine")
    assert result.plugins == {plugin.name: 1} and plugin.name.encode() in result.path.read_bytes()
    assert not any("not found in plugin node" in line for line in result.log)
    shapes = [tensor.shape for tensor in case.inputs.values()]
    attributes = {**plugin.attributes, **case.attributes}
    assert result.activation_bytes >= plugin.kernel.workspace(shapes, attributes, capability)
