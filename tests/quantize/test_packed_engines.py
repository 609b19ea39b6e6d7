"""Engines of quantized graphs keep codes packed, and multiply codes by codes where activations have them too."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx_ir as ir

from rtgen.engine import trt
from rtgen.engine.builder import EngineJob, build_engine
from rtgen.errors import BuildError
from rtgen.progress import SilentProgress
from rtgen.quantize.graph import passes_for
from tests.engine.compiled_products import products
from tests.passes.linear_net import linear_net

pytestmark = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")

SHAPES = {"wq": (512, 512), "wk": (512, 512), "wv": (512, 512), "up": (1536, 512), "down": (512, 1536)}
BODY = [
    "q = linear(x, wq)",
    "k = linear(x, wk)",
    "v = linear(x, wv)",
    "s = Mul(q, k)",
    "a = Add(s, v)",
    "h = linear(a, up)",
    "g = Gelu(h)",
    "y = linear(g, down)",
]
QUARTER = {"weights": "int4"}
EIGHTH, FLOAT8 = ({"weights": kind, "activations": kind} for kind in ("int8", "fp8"))
FLOAT4 = {"weights": "fp4", "activations": "fp4"}
FACTORS = np.random.default_rng(0).uniform(0.5, 2, 512).astype(np.float16)
PAIRS = [
    *((QUARTER, cc) for cc in ("8.6", "8.0", "8.9", "12.0", "12.1")),
    *((EIGHTH, cc) for cc in ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")),
    *((FLOAT8, cc) for cc in ("8.9", "12.0", "12.1")),
    *((FLOAT4, cc) for cc in ("12.0", "12.1")),
]
BITS = {"int4": (4.0, 4.6), "int8": (8.0, 8.2), "fp8": (8.0, 8.2), "fp4": (4.4, 4.7)}
CODES = {"int8": "int8", "fp8": "fp8_e4m3", "fp4": "fp4_e2m1"}
FIRST = {"int4": "8.6", "int8": "7.5", "fp8": "8.9", "fp4": "12.0"}


def build(folder, choice, capability):
    made = linear_net("T[1,64,512] x", "T[1,64,512] y", BODY, **SHAPES)
    choices = {name: dict(choice) for name in SHAPES}
    if "activations" in choice:
        for name in ("wq", "wk", "wv"):
            choices[name]["pre_scale"] = FACTORS
    made.quantize(folder, [], **choices)
    for each in passes_for(made.layers):
        each(made.model)
    ir.save(made.model, folder / "net.onnx")
    job = EngineJob("net", "tensorrt_rtx", folder / "net.onnx", folder, folder / "net.engine", capability)
    return build_engine(job, SilentProgress(), stage="engine")


@pytest.mark.parametrize(
    ("choice", "capability"),
    [
        pytest.param(choice, cc, marks=[] if FIRST[choice["weights"]] == cc else [pytest.mark.slow])
        for choice, cc in PAIRS
    ],
)
def test_weights_stay_packed_and_codes_are_multiplied(tmp_path, choice, capability):
    result = build(tmp_path, choice, capability)
    kind, count = choice["weights"], sum(rows * columns for rows, columns in SHAPES.values())
    low, high = BITS[kind]
    assert low <= 8 * result.weights_bytes / count <= high
    found = products(result.path)
    assert found
    if kind == "int4":  # dequantized inside the kernel that multiplies
        assert all("int4" in product.reads for product in found)
    else:
        assert all(product.factors[1] == CODES[kind] for product in found)
        assert {product.factors[0] for product in found} <= {CODES[kind], None}


def test_layers_of_one_input_become_one_product(tmp_path):
    found = products(build(tmp_path, EIGHTH, "8.9").path)
    assert sorted(len(product.nodes) for product in found) == [1, 1, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "capability"), [(QUARTER, "7.5"), (FLOAT8, "8.6"), (FLOAT4, "8.9")])
def test_gpus_without_the_format_are_refused(tmp_path, choice, capability):
    with pytest.raises(BuildError, match="HW-specific datatypes"):
        build(tmp_path, choice, capability)
