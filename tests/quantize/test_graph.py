"""A graph rewritten for a quantization result: one file of weights, and the passes that its layers need."""

import json

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
import onnx_ir as ir
import onnxruntime
from safetensors.numpy import load_file, save_file

from rtgen.errors import CheckpointError
from rtgen.models.safetensors_index import read_index
from rtgen.passes.bind_weights import BindWeights
from rtgen.quantize.graph import write_graph
from tests.passes.linear_net import close, linear_net
from tests.quantize.handmade import write_handmade

X = np.random.default_rng(1).standard_normal((1, 5, 128)).astype(np.float16)
FACTORS = np.random.default_rng(2).uniform(0.5, 2, 128).astype(np.float16)
BODY = ["q = linear(x, first)", "a = Add(q, bias)", "b = linear(a, second)", "y = linear(b, third)"]
SHAPES = {"first": (128, 128), "second": (192, 128), "third": (64, 192), "bias": (128,)}


@pytest.fixture
def exported(tmp_path):
    """A graph as the export leaves it, in a folder of its own; its weights are in another."""
    made = linear_net("T[1,5,128] x", "T[1,5,64] y", BODY, **SHAPES)
    for name in ("checkpoint", "export", "calibration", "quantize"):
        (tmp_path / name).mkdir()
    save_file(made.weights, tmp_path / "checkpoint" / "part.safetensors")
    BindWeights(read_index(tmp_path / "checkpoint" / "part.safetensors"))(made.model)
    ir.save(made.model, tmp_path / "export" / "net.onnx")
    return tmp_path, made.weights


def write(exported, choices):
    """Write the quantized graph with its weights beside it; returns the layers by name."""
    root, checkpoint = exported
    file, result, layers = write_handmade(root / "calibration", root / "export" / "net.onnx", checkpoint, choices.get)
    write_graph(root / "export" / "net.onnx", file, result, root / "quantize")
    (root / "quantize" / file.name).hardlink_to(file)
    return layers


def run(root):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = root / "quantize" / "net.onnx"
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def test_layers_of_several_formats_meet_in_one_graph_that_refers_to_one_file(exported):
    root, checkpoint = exported
    layers = write(
        exported,
        {
            "first": {"weights": "int8", "activations": "int8", "pre_scale": FACTORS, "amax": 8.0, "rank": 4},
            "second": {"weights": "int4"},
        },
    )
    proto = onnx.load(root / "quantize" / "net.onnx", load_external_data=False)
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in proto.graph.initializer]
    assert {place["location"] for place in places if place} == {"quantized.safetensors"}
    assert {"third", "bias"} <= {tensor.name for tensor in proto.graph.initializer}

    step = np.float16(8 / 127)
    scaled = X * FACTORS
    codes = np.rint(scaled / np.float32(step)).clip(-128, 127) * np.float64(step)
    first, second = (layers[name].matrix.T.astype(np.float64) for name in ("first", "second"))
    down, up = (layers["first"].tensors[f"first.low_rank_{part}"].T.astype(np.float64) for part in ("down", "up"))
    hidden = codes @ first + scaled.astype(np.float64) @ down @ up + checkpoint["bias"].astype(np.float64)
    expected = hidden @ second @ checkpoint["third"].T.astype(np.float64)
    close(run(root), expected)


def test_a_layer_that_stays_is_bound_to_the_new_file(exported):
    root, checkpoint = exported
    write(exported, {})
    expected = X.astype(np.float64) @ checkpoint["first"].T.astype(np.float64) + checkpoint["bias"].astype(np.float64)
    for name in ("second", "third"):
        expected = expected @ checkpoint[name].T.astype(np.float64)
    close(run(root), expected)


def damaged(file, change):
    """Rewrite a weight file; ``change`` edits its tensors."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop("first.codes"), "lack first.codes"),
        (lambda t: t.pop("first.scales"), r"first has no scales of shape \(128,\)"),
        (lambda t: t.update({"first.scales": t["first.scales"][:5]}), r"first has no scales of shape \(128,\)"),
        (lambda t: t.update({"first.codes": t["first.codes"][:5]}), "first has 640 bytes of int8 codes"),
        (lambda t: t.pop("first.pre_scale"), "first has no pre_scale"),
        (lambda t: t.pop("bias"), "lack bias"),
        (lambda t: t.update(bias=t["bias"][:3]), r"bias has shape \(3,\)"),
    ],
)
def test_what_is_missing_or_misshapen_is_named(exported, change, problem):
    root, checkpoint = exported
    choices = {"first": {"weights": "int8", "activations": "int8", "pre_scale": FACTORS}}
    file, result, _ = write_handmade(root / "calibration", root / "export" / "net.onnx", checkpoint, choices.get)
    damaged(file, change)
    with pytest.raises(CheckpointError, match=problem):
        write_graph(root / "export" / "net.onnx", file, result, root / "quantize")
    assert not list((root / "quantize").iterdir())


def test_a_result_for_another_graph_is_refused(exported):
    root, checkpoint = exported
    choices = {"first": {"weights": "int4"}}
    file, result, _ = write_handmade(root / "calibration", root / "export" / "net.onnx", checkpoint, choices.get)
    text = json.dumps(result.model_dump(mode="json")).replace('"first"', '"bias"')
    with pytest.raises(CheckpointError, match="no linear layer bias"):
        write_graph(root / "export" / "net.onnx", file, type(result).model_validate_json(text), root / "quantize")
