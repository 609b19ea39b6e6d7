"""A quantized graph computes what the dequantized matrices compute, and compilers keep its codes packed."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from rtgen.config.recipe import WeightQuantization  # noqa: E402
from rtgen.engine import trt  # noqa: E402
from rtgen.engine.builder import EngineJob, build_engine  # noqa: E402
from rtgen.errors import CheckpointError, UsageError  # noqa: E402
from rtgen.models.safetensors_index import read_index  # noqa: E402
from rtgen.passes.bind_weights import BindWeights  # noqa: E402
from rtgen.passes.quantize_weights import QuantizeWeights, matrices  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.quantize.graph import quantize_graph  # noqa: E402
from rtgen.quantize.weight_only import dequantize_blocks, quantize_blocks  # noqa: E402

needs_rtx = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
SETTINGS = WeightQuantization(minimum_elements=0)
TYPES = {"float32": "float", "float16": "float16"}
SHAPES = {"up": (256, 128), "bias": (256,), "down": (128, 256), "odd": (128, 96), "tied": (128, 128), "table": (2, 96)}
BODY = """
    row = Gather(tied, zero)
    a = Add(x, row)
    upT = Transpose<perm = [1, 0]>(up)
    b = MatMul(a, upT)
    c = Add(b, bias)
    downT = Transpose<perm = [1, 0]>(down)
    d = MatMul(c, downT)
    oddT = Transpose<perm = [1, 0]>(odd)
    e = MatMul(table, oddT)
    tiedT = Transpose<perm = [1, 0]>(tied)
    f = MatMul(e, tiedT)
    y = Add(d, f)
"""
QUANTIZED = {"up", "down"}  # odd has no whole blocks, tied is looked up too


def write_graph(folder, text, values, precision="float16"):
    """``net.onnx`` in ``folder``, its weights in ``folder/weights``."""
    (folder / "weights").mkdir(parents=True)
    save_file(values, folder / "weights" / "part.safetensors")
    proto = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 24]> {text}')
    for name, value in values.items():
        array = value.to(getattr(torch, precision)).numpy()
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "zero"))
    model = ir.from_proto(proto)
    BindWeights(read_index(folder / "weights" / "part.safetensors"))(model)
    ir.save(model, folder / "net.onnx")


def network(folder, precision="float16", stored="float16"):
    """Weights of every kind. Returns them."""
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in SHAPES.items()}
    values = {name: value.to(getattr(torch, stored)) for name, value in values.items()}
    kind = TYPES[precision]
    write_graph(folder, f"net ({kind}[2,128] x) => ({kind}[2,128] y) {{ {BODY} }}", values, precision)
    return {name: value.float().numpy() for name, value in values.items()}


def quantize(folder, settings=SETTINGS, advance=lambda fraction, name: None):
    (folder / "quantized").mkdir(exist_ok=True)
    return quantize_graph(folder / "net.onnx", folder / "weights", folder / "quantized", settings, advance)


def expected(values, x):
    """What the graph computes with dequantized matrices, in float64."""
    w = {name: value.astype(np.float64) for name, value in values.items()}
    for name in QUANTIZED:
        w[name] = dequantize_blocks(*quantize_blocks(values[name], 64)).astype(np.float16).astype(np.float64)
    hidden = (x + w["tied"][0]) @ w["up"].T + w["bias"]
    return hidden @ w["down"].T + w["table"] @ w["odd"].T @ w["tied"].T


@pytest.mark.parametrize(
    ("precision", "stored", "tolerance"),
    [
        ("float16", "float16", 5e-3),
        ("float16", "float32", 5e-3),
        ("float32", "bfloat16", 1e-6),
        ("float32", "float32", 1e-6),
    ],
)
def test_the_graph_computes_with_the_dequantized_matrices(tmp_path, precision, stored, tolerance):
    values = network(tmp_path, precision, stored)
    calls = []
    file = quantize(tmp_path, advance=lambda fraction, name: calls.append((fraction, name)))
    assert sorted(path.name for path in (tmp_path / "quantized").iterdir()) == ["net.int4.safetensors", "net.onnx"]
    assert file == "net.int4.safetensors"
    assert [fraction for fraction, _ in calls] == sorted(fraction for fraction, _ in calls)
    assert calls[0][0] == 0 and calls[-1] == (1.0, "") and "up" in {name for _, name in calls}

    proto = onnx.load(tmp_path / "quantized" / "net.onnx", load_external_data=False)
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert {name for name, kind in kinds.items() if kind == onnx.TensorProto.INT4} == {
        f"{name}{'' if stored == precision else '.stored'}.codes" for name in QUANTIZED
    }
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in proto.graph.initializer]
    assert {place["location"] for place in places if place} == {file}

    x = np.random.default_rng(2).standard_normal((2, 128)).astype(precision)
    session = onnxruntime.InferenceSession(tmp_path / "quantized" / "net.onnx", providers=["CPUExecutionProvider"])
    reference = expected(values, x.astype(np.float64))
    assert np.abs(session.run(None, {"x": x})[0] - reference).max() < tolerance * np.abs(reference).max()


def test_the_new_file_is_sound_and_holds_what_was_not_quantized_bit_for_bit(tmp_path):
    network(tmp_path)
    quantize(tmp_path)
    before, after = (
        load_file(tmp_path / "weights" / "part.safetensors"),
        load_file(tmp_path / "quantized" / "net.int4.safetensors"),
    )
    kept = before.keys() - QUANTIZED
    assert after.keys() == kept | {f"{name}.{part}" for name in QUANTIZED for part in ("codes", "scales")}
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert after["up.codes"].shape == (256, 64) and after["up.scales"].shape == (256, 2)
    first = (tmp_path / "quantized" / "net.int4.safetensors").read_bytes()
    for path in (tmp_path / "quantized").iterdir():
        path.unlink()
    quantize(tmp_path)
    assert (tmp_path / "quantized" / "net.int4.safetensors").read_bytes() == first


def test_excluded_and_small_matrices_stay(tmp_path):
    network(tmp_path)
    quantize(tmp_path, replace_settings(exclude=("u?",)))
    assert "up" in load_file(tmp_path / "quantized" / "net.int4.safetensors")
    for settings in (replace_settings(exclude=("*",)), replace_settings(minimum_elements=256 * 128 + 1)):
        with pytest.raises(UsageError, match="net has no matrix"):
            quantize(tmp_path, settings)


def replace_settings(**values):
    return SETTINGS.model_copy(update=values)


def test_damaged_weights_are_named(tmp_path):
    values = network(tmp_path)
    file = tmp_path / "weights" / "part.safetensors"
    content = {name: torch.from_numpy(value).half() for name, value in values.items()}
    content["up"][3, 5] = float("nan")
    save_file(content, file)
    with pytest.raises(CheckpointError, match=r"^up cannot be quantized: .*not finite"):
        quantize(tmp_path)
    (tmp_path / "quantized" / "net.int4.safetensors").unlink()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"part\.safetensors is truncated"):
        quantize(tmp_path)


def test_only_matrices_of_products_are_found_and_without_any_nothing_changes(tmp_path):
    network(tmp_path)
    model = ir.load(tmp_path / "net.onnx")
    assert matrices(model.graph).keys() == QUANTIZED | {"odd"}
    assert not QuantizeWeights({})(model).modified


@needs_rtx
@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0"])
def test_the_engine_keeps_the_codes_packed(tmp_path, capability):
    shapes = [(2048, 512), (1024, 2048), (512, 1024)]
    values = {f"w{index}": torch.randn(shape).half() * 0.05 for index, shape in enumerate(shapes)}
    body = [f"t{i} = Transpose<perm = [1, 0]>(w{i}) h{i + 1} = MatMul(h{i}, t{i})" for i in range(len(shapes))]
    write_graph(tmp_path, f"net (float16[64,512] h0) => (float16[64,512] h3) {{ {' '.join(body)} }}", values)
    quantize(tmp_path)
    folder = tmp_path / "quantized"
    job = EngineJob("net", "tensorrt_rtx", folder / "net.onnx", folder, tmp_path / "net.engine", capability)
    result = build_engine(job, SilentProgress(), stage="engine")
    count = sum(value.numel() for value in values.values())
    assert 4 * count / 8 < result.weights_bytes <= 4.6 * count / 8
