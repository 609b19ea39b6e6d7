"""Components that run on the processor beside a GPU: who opens them, and what they take of the memory."""

import gc
from pathlib import Path

import numpy as np
import pytest

from rtgen.engine.manifest import ComponentEntry, TensorEntry
from rtgen.engine.package import Package
from rtgen.runtime.backends.host import with_host_components
from rtgen.runtime.backends.onnxruntime import OnnxRuntimeBackend

onnx = pytest.importorskip("onnx")

LAYERS, INNER, OUTER, TOKENS = 8, 1024, 4096, 16
STORED_BYTES = 2 * LAYERS * 2 * INNER * OUTER
STATUS = Path("/proc/self/status")


def private_bytes():
    """Memory that belongs to this process alone; pages of mapped files are not among it."""
    gc.collect()
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


def save_encoder(folder):
    """A stack of y = x + B relu(A x) whose float16 weights are cast to float32, as the export writes them."""
    from onnx import TensorProto, helper, numpy_helper

    random, weights, nodes, x = np.random.default_rng(0), [], [], "x"
    for layer in range(LAYERS):
        for name, shape in ((f"a{layer}", (OUTER, INNER)), (f"b{layer}", (INNER, OUTER))):
            array = (0.02 * random.standard_normal(shape, dtype=np.float32)).astype(np.float16)
            weights.append(numpy_helper.from_array(array, name))
            nodes.append(helper.make_node("Cast", [name], [f"{name}.cast"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Transpose", [f"{name}.cast"], [f"{name}.turned"], perm=[1, 0]))
        nodes += [
            helper.make_node("MatMul", [x, f"a{layer}.turned"], [f"wide{layer}"]),
            helper.make_node("Relu", [f"wide{layer}"], [f"bent{layer}"]),
            helper.make_node("MatMul", [f"bent{layer}", f"b{layer}.turned"], [f"narrow{layer}"]),
            helper.make_node("Add", [x, f"narrow{layer}"], [f"x{layer}"]),
        ]
        x = f"x{layer}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [TOKENS, INNER]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "encoder", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save_model(model, folder / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    return ComponentEntry(
        file="e.onnx",
        weights=("e.data",),
        inputs=(TensorEntry(name="x", dtype="float32", shape=(TOKENS, INNER)),),
        outputs=(TensorEntry(name=x, dtype="float32", shape=(TOKENS, INNER)),),
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return folder, save_encoder(folder)


def encoded(encoder, make_manifest, runs_on):
    """What the encoder makes, and its memory: when loaded, after a run and when closed."""
    folder, entry = encoder
    manifest = make_manifest(components={"text_encoder": entry.model_copy(update={"runs_on": runs_on})})
    start, found = private_bytes(), []
    session = OnnxRuntimeBackend(Package(folder, manifest), threads=1).open("text_encoder")
    session.allocate({})
    found.append(private_bytes() - start)
    session.write("x", np.linspace(-1, 1, TOKENS * INNER, dtype=np.float32).reshape(TOKENS, INNER))
    session.run()
    found.append(private_bytes() - start)
    result = session.read(entry.outputs[0].name)
    session.close()
    return result, [*found, private_bytes() - start]


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells private memory from mapped files")
def test_the_weights_of_a_host_component_stay_in_their_file(encoder, make_manifest):
    result, memory = encoded(encoder, make_manifest, "host")
    assert max(memory) < STORED_BYTES / 2  # a few matrices in float32, which the C library may keep for later
    resident, held = encoded(encoder, make_manifest, "device")
    assert held[0] > 1.8 * STORED_BYTES  # what would happen otherwise: all weights in float32
    np.testing.assert_allclose(result, resident, rtol=1e-4, atol=1e-4)


class Device:
    name, device, closed = "tensorrt_rtx", "a GPU", False

    def open(self, component):
        return component

    def close(self):
        self.closed = True


def test_each_component_is_opened_where_it_runs(encoder, make_manifest):
    folder, entry = encoder
    host = entry.model_copy(update={"runs_on": "host"})
    device = Device()
    package = Package(folder, make_manifest(components={"text_encoder": host, "denoiser": entry}))
    backend = with_host_components(package, device)
    assert (backend.name, backend.device) == ("tensorrt_rtx", "a GPU")
    assert backend.open("denoiser") == "denoiser" and backend.open("text_encoder").component == host
    backend.close()
    assert device.closed


def test_a_package_without_host_components_keeps_its_backend(encoder, make_manifest):
    device = Device()
    assert with_host_components(Package(None, make_manifest()), device) is device
