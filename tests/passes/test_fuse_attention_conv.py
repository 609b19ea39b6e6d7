"""The attention of an autoencoder's mid block becomes one node, and the numbers stay."""

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

import onnx_ir as ir  # noqa: E402
from onnx import parser  # noqa: E402

from rtgen.build.graphs import export_one  # noqa: E402
from rtgen.build.plan import plan_build  # noqa: E402
from rtgen.engine.manifest import TensorEntry, resolve_shape  # noqa: E402
from rtgen.export.graph import export_graph  # noqa: E402
from rtgen.models.autoencoder_blocks import AttentionBlock  # noqa: E402
from rtgen.passes.attach_functions import AttachFunctions  # noqa: E402
from rtgen.passes.fuse_attention_conv import FuseAttentionConv  # noqa: E402
from rtgen.passes.simplify import Simplify  # noqa: E402
from tests.models.random_weights import random_weights  # noqa: E402

CHANNELS = 32


def block(rank=5, kind="float16", channels=CHANNELS, tail="y = Add(image, x)", attributes="", after="", outputs=""):
    """The graph of a block over 2 streams of 3 frames (rank 5) or over 6 images (rank 4); the weight has 24 rows."""
    frames = "2, 3," if rank == 5 else "6,"
    image = "2, 24, 3, H, W" if rank == 5 else "6, 24, H, W"
    perm = "0, 4, 1, 2, 3" if rank == 5 else "0, 3, 1, 2"
    text = f"""
    <ir_version: 10, opset_import: ["": 24]>
    network ({kind}[6, N, {3 * channels}] qkv, {kind}[{image}] x, int64[{rank}] places,
             {kind}[24, {channels}] weight, {kind}[24] bias)
        => ({kind}[{image}] y{outputs})
    <{kind}[6, 1, N, {channels}] query, {kind}[6, 1, N, {channels}] key, {kind}[6, 1, N, {channels}] value,
     {kind}[6, 1, N, {3 * channels}] apart, {kind}[6, 1, N, {channels}] attended, {kind}[{channels}, 24] turned,
     {kind}[{frames} H, W, 24] tokens, {kind}[{image}] image>
    {{
        heads = Constant <value_ints = [1]> ()
        apart = Unsqueeze (qkv, heads)
        query, key, value = Split <axis = 3, num_outputs = 3> (apart)
        attended = Attention {attributes} (query, key, value)
        flat = Squeeze (attended, heads)
        turned = Transpose <perm = [1, 0]> (weight)
        product = MatMul (flat, turned)
        projected = Add (product, bias)
        tokens = Reshape (projected, places)
        image = Transpose <perm = [{perm}]> (tokens)
        {tail}
        {after}
    }}
    """
    return ir.from_proto(parser.parse_model(text))


def feeds(rank=5):
    random = np.random.default_rng(rank)

    def noise(*shape):
        return random.standard_normal(shape).astype(np.float16)

    image, places = ((2, 24, 3, 4, 5), [2, 3, 4, 5, 24]) if rank == 5 else ((6, 24, 4, 5), [6, 4, 5, 24])
    return {
        "qkv": noise(6, 20, 3 * CHANNELS),
        "x": noise(*image),
        "places": np.array(places),
        "weight": noise(24, CHANNELS),
        "bias": noise(24),
    }


def run(model, given):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in given.items() if name in names})


def types(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(("attributes", "scale"), [("", 0.0), ("<scale = 0.3, is_causal = 0, softcap = 0.0>", 0.3)])
@pytest.mark.parametrize("tail", ["y = Add(image, x)", "y = Add(x, image)"])
def test_a_block_becomes_one_node_and_the_numbers_stay(attributes, scale, tail):
    model = block(attributes=attributes, tail=tail)
    before = run(model, feeds())[0]
    assert FuseAttentionConv()(model).modified
    assert types(model) == ["AttentionConv"]  # rule 1
    node = model.graph[0]
    assert node.attributes["channels"].value == CHANNELS
    assert node.attributes["scale"].value == pytest.approx(scale)
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert not FuseAttentionConv()(model).modified
    AttachFunctions()(model)
    np.testing.assert_allclose(run(model, feeds())[0].astype(np.float32), before.astype(np.float32), atol=2e-2)


def test_an_image_without_frames_gets_one(tmp_path):
    model = block(rank=4)
    before = run(model, feeds(4))[0]
    assert FuseAttentionConv()(model).modified
    assert types(model) == ["Constant", "Unsqueeze", "AttentionConv", "Squeeze"]  # rule 2
    AttachFunctions()(model)
    np.testing.assert_allclose(run(model, feeds(4))[0].astype(np.float32), before.astype(np.float32), atol=2e-2)


@pytest.mark.parametrize(
    "kept",
    [
        block(kind="float"),
        block(channels=24),
        block(channels=528),
        block(attributes="<is_causal = 1>"),
        block(attributes="<softcap = 30.0>"),
        block(tail="y = Sub(image, x)"),
        block(after="other = Neg(product)", outputs=", float16[6, N, 24] other"),
        block(after="other = Neg(query)", outputs=f", float16[6, 1, N, {CHANNELS}] other"),
    ],
    ids=["float32", "width", "too wide", "causal", "capped", "no residual", "product read", "query read"],
)
def test_other_graphs_are_left_as_they_are(kept):
    before = types(kept)
    assert not FuseAttentionConv()(kept).modified  # rule 3
    assert types(kept) == before


@pytest.mark.parametrize("streams", [1, 2])
def test_the_exported_block_of_the_autoencoder(streams):
    """At a size that it was not traced at."""
    block = AttentionBlock(CHANNELS)
    random_weights(block, 1)
    example = torch.zeros(streams, CHANNELS, 3, 6, 10, dtype=torch.float16)
    shape = (streams, CHANNELS, 3, "rows", "columns")
    dimensions = {axis: torch.export.Dim(name, min=2, max=512) for axis, name in ((3, "rows"), (4, "columns"))}
    entries = [[TensorEntry(name=name, dtype="float16", shape=shape)] for name in ("x", "y")]
    model = export_graph(block.half(), {"x": example}, {"x": dimensions}, *entries).model
    Simplify(frozenset(name for name, _ in block.named_parameters()))(model)
    x = np.random.default_rng(2).standard_normal((streams, CHANNELS, 3, 4, 5)).astype(np.float16)
    before = run(model, {"x": x})[0]
    assert FuseAttentionConv()(model).modified
    assert types(model).count("AttentionConv") == 1
    AttachFunctions()(model)
    np.testing.assert_allclose(run(model, {"x": x})[0].astype(np.float32), before.astype(np.float32), atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny-wan"])
def test_the_exported_decoder(tiny_models, tmp_path, name):
    """Of its layout changes the one after the attention goes, and what it decodes stays."""
    tiny = tiny_models[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTGEN_CONFIGS", str(tiny.configs))
        plan = plan_build(tiny.request("rtx4080-laptop", recipe="fp16", store=tmp_path / "store"))
        table = export_one(plan, "decoder", tmp_path)
    for file in table.weights:
        shutil.copy(tiny.weights / file, tmp_path)
    model = ir.load(tmp_path / table.file)
    before = types(model)
    assert FuseAttentionConv()(model).modified
    after = types(model)
    assert after.count("AttentionConv") == 1 and not {"Attention", "Split"} & set(after)
    assert before.count("Transpose") - after.count("Transpose") == 2  # of the weight and of the output
    AttachFunctions()(model)
    ir.save(model, tmp_path / "fused.onnx")

    random = np.random.default_rng(1)
    kinds = {"float16": np.float16, "float32": np.float32}
    given = {
        tensor.name: random.standard_normal(resolve_shape(tensor.shape, {"rows": 4, "columns": 3})).astype(
            kinds[tensor.dtype]
        )
        for tensor in table.inputs
    }
    plain, fused = (decoded(tmp_path / file, given) for file in (table.file, "fused.onnx"))
    assert len(plain) == len(fused) == len(table.outputs)
    assert np.abs(plain[0].astype(int) - fused[0]).mean() < 0.2  # levels of 255
    for one, other in zip(plain[1:], fused[1:], strict=True):
        np.testing.assert_allclose(other.astype(np.float32), one.astype(np.float32), atol=5e-2)


def decoded(path, given):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, given)
