"""BindWeights points the graph at the checkpoint file; what the graph computes stays the same."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from rtgen.models.safetensors_index import read_index  # noqa: E402
from rtgen.passes.bind_weights import BindWeights  # noqa: E402

TYPES = {"float32": "float", "float16": "float16"}
WEIGHT, BIAS = torch.randn(64, 64), torch.randn(64)


def model(precision):
    """x @ weight + bias + weight[0]: one weight is used twice, and ``table`` is no weight."""
    kind = TYPES[precision]
    proto = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 24]>
        net ({kind}[2,64] x) => ({kind}[2,64] y) {{
            z = MatMul(x, w)
            a = Add(z, b)
            row = Gather(w, table)
            y = Add(a, row)
        }}"""
    )
    dtype = getattr(torch, precision)
    for name, value in (("w", WEIGHT.to(dtype)), ("b", BIAS.to(dtype)), ("table", torch.tensor(0))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    return ir.from_proto(proto)


def run(path_or_bytes, precision):
    session = onnxruntime.InferenceSession(path_or_bytes, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(precision)
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_bound_weights_compute_what_embedded_ones_do(tmp_path, precision, stored):
    file, dtype = tmp_path / "part.0.safetensors", getattr(torch, stored)
    save_file({"net.b": BIAS.to(dtype), "net.w": WEIGHT.to(dtype), "net.unused": BIAS.clone()}, file)
    index = read_index(file)
    found = BindWeights({"w": index["net.w"], "b": index["net.b"]})(model(precision))
    assert found.modified
    ir.save(found.model, tmp_path / "net.onnx")

    proto = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    external = {
        entry.name.removesuffix(".stored"): {item.key: item.value for item in entry.external_data}["location"]
        for entry in proto.graph.initializer
        if entry.external_data
    }
    assert external == {"w": file.name, "b": file.name}
    assert (tmp_path / "net.onnx").stat().st_size < 2000 < WEIGHT.nbytes
    assert sum(node.op_type == "Cast" for node in proto.graph.node) == (0 if stored == precision else 2)

    embedded = model(precision)
    for name, value in (("w", WEIGHT), ("b", BIAS)):
        rounded = value.to(dtype).to(getattr(torch, precision)).numpy()
        embedded.graph.initializers[name].const_value = ir.tensor(rounded)
    expected = run(ir.to_proto(embedded).SerializeToString(), precision)
    np.testing.assert_array_equal(run(str(tmp_path / "net.onnx"), precision), expected)


def test_a_weight_of_another_shape_is_refused(tmp_path):
    file = tmp_path / "part.0.safetensors"
    save_file({"w": WEIGHT[:32].clone()}, file)
    with pytest.raises(Exception, match=r"'w' is \(32, 64\) in part\.0\.safetensors"):
        BindWeights({"w": read_index(file)["w"]})(model("float32"))


def test_without_a_stored_weight_nothing_changes():
    assert not BindWeights({})(model("float32")).modified
