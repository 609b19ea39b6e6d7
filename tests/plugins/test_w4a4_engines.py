"""TensorRT for RTX builds the inlined body of W4A4Linear for every GPU that the recipe names, with packed codes."""

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")

from rtgen.engine import trt  # noqa: E402
from rtgen.engine.builder import EngineJob, build_engine  # noqa: E402
from rtgen.passes.attach_functions import AttachFunctions  # noqa: E402
from rtgen.passes.inline_functions import InlineFunctions  # noqa: E402
from rtgen.plugins.w4a4_linear import PLUGIN  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402

pytestmark = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")

WIDTH, RANK = 512, 16


def parameters(layer):
    random = np.random.default_rng(layer)
    shapes = {"scales": (WIDTH, WIDTH // 64), "pre_scale": (WIDTH,), "shift": (WIDTH,)}
    shapes |= {"low_rank_down": (RANK, WIDTH), "low_rank_up": (WIDTH, RANK), "bias": (WIDTH,)}
    made = {name: random.normal(0, 0.05, shape).astype(np.float16) for name, shape in shapes.items()}
    return made | {"codes": random.integers(-128, 128, (WIDTH, WIDTH // 2)).astype(np.int8)}


def network():
    """Two layers, one of them rotated."""
    lines = []
    for layer in (0, 1):
        names = ", ".join(f"{name}_{layer}" for name in PLUGIN.inputs[1:])
        lines.append(f"y{layer} = rtgen.W4A4Linear <rotate = {layer}> ({'x' if layer == 0 else 'y0'}, {names})")
    text = f'<ir_version: 11, opset_import: ["" : 24, "rtgen" : 1]> net (float16[1,T,{WIDTH}] x) => '
    model = onnx.parser.parse_model(f"{text}(float16[1,T,{WIDTH}] y1) {{ {' '.join(lines)} }}")
    for layer in (0, 1):
        tensors = parameters(layer)
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(tensors[name], f"{name}_{layer}") for name in PLUGIN.inputs[1:]
        )
    return ir.from_proto(model)


@pytest.mark.parametrize(
    "capability", ["7.5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("8.0", "8.6", "8.9", "12.0"))]
)
def test_engines_hold_four_bits_a_weight(tmp_path, capability):
    model = network()
    AttachFunctions()(model)
    InlineFunctions({PLUGIN.name})(model)
    ir.save(model, tmp_path / "net.onnx")
    profile = {"x": ((1, 8, WIDTH), (1, 64, WIDTH), (1, 64, WIDTH))}
    path = tmp_path / "net.onnx"
    job = EngineJob("net", "tensorrt_rtx", path, tmp_path, tmp_path / "net.engine", capability, (profile,))
    result = build_engine(job, SilentProgress(), stage="engine")
    branch_and_vectors = 2 * 2 * (2 * RANK * WIDTH + 2 * 3 * WIDTH)  # bytes; vectors may be held as float32
    bits = 8 * (result.weights_bytes - branch_and_vectors) / (2 * WIDTH * WIDTH)
    assert 4 <= bits <= 4.6
