"""What follows a W4A4Linear becomes a part of it, and the numbers stay."""

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import onnx_ir as ir  # noqa: E402
from onnx import parser  # noqa: E402

from rtgen.passes.attach_functions import AttachFunctions  # noqa: E402
from rtgen.passes.fuse_w4a4_epilogues import FuseW4A4Epilogues  # noqa: E402

WIDTH, FEATURES, RANK, FRAMES = 128, 96, 8, 3
GELU = 'y = Gelu <approximate = "tanh"> (linear)'
GATED = """
    wide = Cast <to = 1> (linear)
    frames = Reshape (wide, apart)
    axis = Constant <value_ints = [2]> ()
    rows = Unsqueeze (gate, axis)
    scaled = Mul (frames, rows)
    tokens = Reshape (scaled, together)
    y = Add (residual, tokens)
"""


def network(tail, kind="float", attributes="rotate = 1", outputs="", shape=f"1, T, {FEATURES}"):
    """A layer and ``tail``, which makes y, in ``kind``, of what it gives."""
    text = f"""
    <ir_version: 10, opset_import: ["": 24, "rtgen": 1]>
    network (float16[1, T, {WIDTH}] x, int8[{FEATURES}, {WIDTH // 2}] codes, float16[{FEATURES}, {WIDTH // 64}] scales,
             float16[{WIDTH}] pre_scale, float16[{WIDTH}] shift, float16[{RANK}, {WIDTH}] down,
             float16[{FEATURES}, {RANK}] up, float16[{FEATURES}] bias, float[1, {FRAMES}, {FEATURES}] gate,
             float[{shape}] residual, int64[4] apart, int64[3] together)
        => ({kind}[1, T, {FEATURES}] y{outputs})
    <float16[1, T, {FEATURES}] linear, float[1, T, {FEATURES}] wide, float[1, {FRAMES}, S, {FEATURES}] frames,
     float[1, {FRAMES}, 1, {FEATURES}] rows, float[1, {FRAMES}, S, {FEATURES}] scaled,
     float[1, T, {FEATURES}] tokens>
    {{
        linear = rtgen.W4A4Linear <{attributes}> (x, codes, scales, pre_scale, shift, down, up, bias)
        {tail}
    }}
    """
    return ir.from_proto(parser.parse_model(text))


def run(model):
    """With random numbers, after the function bodies are attached."""
    AttachFunctions()(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    random, tokens = np.random.default_rng(1), 4 * FRAMES

    def noise(*shape, scale=1.0):
        return (random.standard_normal(shape) * scale).astype(np.float16)

    feeds = {
        "x": noise(1, tokens, WIDTH),
        "codes": random.integers(-128, 128, (FEATURES, WIDTH // 2), np.int8),
        "scales": noise(FEATURES, WIDTH // 64, scale=0.02),
        "pre_scale": noise(WIDTH) + np.float16(1),
        "shift": noise(WIDTH),
        "down": noise(RANK, WIDTH, scale=0.1),
        "up": noise(FEATURES, RANK, scale=0.1),
        "bias": noise(FEATURES),
        "gate": noise(1, FRAMES, FEATURES).astype(np.float32),
        "residual": noise(1, tokens, FEATURES).astype(np.float32),
        "apart": np.array([1, FRAMES, tokens // FRAMES, FEATURES]),
        "together": np.array([1, tokens, FEATURES]),
    }
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in feeds.items() if name in wanted})[0].astype(np.float32)


def types(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(("attributes", "rotate"), [("rotate = 1", 1), ("rotate = 0, epilogue = 0", 0)])
def test_gelu_becomes_the_epilogue(attributes, rotate):
    exact = run(network(GELU, "float16", attributes))
    model = network(GELU, "float16", attributes)
    assert FuseW4A4Epilogues()(model).modified
    assert types(model) == ["W4A4Linear"]  # rule 1
    found = {name: attribute.value for name, attribute in model.graph[0].attributes.items()}
    assert found == {"rotate": rotate, "epilogue": 1}
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert not FuseW4A4Epilogues()(model).modified
    np.testing.assert_allclose(run(model), exact, atol=2e-2, rtol=2e-3)


@pytest.mark.parametrize("swapped", [False, True])
def test_gate_and_residual_become_the_gated_layer(swapped):
    tail = GATED.replace("(residual, tokens)", "(tokens, residual)").replace("(frames, rows)", "(rows, frames)")
    tail = tail if swapped else GATED
    exact = run(network(tail))
    model = network(tail)
    assert FuseW4A4Epilogues()(model).modified
    assert types(model) == ["W4A4LinearGated"]  # rule 2
    assert [value.name for value in model.graph[0].inputs][-2:] == ["gate", "residual"]
    np.testing.assert_allclose(run(model), exact, atol=2e-2, rtol=2e-3)


@pytest.mark.parametrize(
    "kept",
    [
        network("y = Gelu (linear)", "float16"),
        network("y = Relu (linear)", "float16"),
        network(GELU, "float16", "rotate = 0, epilogue = 1"),
        network(f"{GELU}\n other = Neg (linear)", "float16", outputs=f", float16[1, T, {FEATURES}] other"),
        network(f"{GATED}\n other = Neg (scaled)", outputs=f", float[1, {FRAMES}, S, {FEATURES}] other"),
        network(GATED.replace("Add", "Sub")),
        network(GATED, shape=f"{FEATURES}"),
        network(GATED.replace("rows = Unsqueeze (gate, axis)", "rows = Reshape (gate, apart)")),
    ],
    ids=["exact GELU", "ReLU", "has one", "read before", "product read", "subtracted", "a bias", "another gate"],
)
def test_other_ends_are_left_as_they_are(kept):
    before = types(kept)
    assert not FuseW4A4Epilogues()(kept).modified  # rule 3
    assert types(kept) == before
