"""The written graph of a whole denoiser computes what its layers compute one by one in torch."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx_ir as ir
import onnxruntime
import torch
from safetensors.numpy import load_file

from rtgen.build.graphs import export_one
from rtgen.build.plan import plan_build
from rtgen.engine.manifest import resolve_shape
from rtgen.export.denoiser import DenoiserPass
from rtgen.models.registry import load
from rtgen.passes.attach_functions import AttachFunctions
from rtgen.plugins.w4a4_linear import torch_op
from rtgen.quantize.graph import write_graph
from rtgen.quantize.simulate import SimulatedLinear
from tests.quantize.handmade import write_handmade

SIZES = {"rows": 3, "columns": 2, "ring": 9 * 6}
FACTORS = np.random.default_rng(0).uniform(0.5, 2, 64).astype(np.float16)
CHOICES = {
    "int4": {"weights": "int4", "pre_scale": FACTORS},
    "int8": {"weights": "int8", "activations": "int8", "amax": 127 / 16, "pre_scale": FACTORS},
    "fp8": {"weights": "fp8", "activations": "fp8", "amax": 448 / 64},
    "branch": {"weights": "int4", "rank": 8, "pre_scale": FACTORS},
}


@pytest.fixture(scope="module")
def exported(tiny_models, tmp_path_factory):
    """The denoiser of ``tiny`` in half precision: its folder, table, checkpoint and torch module."""
    tiny, folder = tiny_models["tiny"], tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTGEN_CONFIGS", str(tiny.configs))
        plan = plan_build(tiny.request("rtx4080-laptop", recipe="fp16", store=folder / "store"))
        table = export_one(plan, "denoiser", folder)
    checkpoint = {}
    for name in table.weights:
        checkpoint |= load_file(tiny.weights / name)
    return folder, table, checkpoint, load("denoiser", tiny.config, tiny.weights, "float16")[0]


def inputs(table):
    generator = np.random.default_rng(1)
    kinds = {"float32": np.float32, "float16": np.float16, "int64": np.int64}
    feeds = {
        tensor.name: generator.standard_normal(_shape(tensor)).astype(kinds[tensor.dtype]) for tensor in table.inputs
    }
    return feeds | {"sigma": np.float32([0.7]), "write_index": np.array([18]), "valid_length": np.array([54])}


def _shape(tensor):
    sizes = {name: size for name, size in SIZES.items() if name != "ring"}
    return resolve_shape(tensor.shape, sizes)


def in_onnx_runtime(graph, feeds):
    model = ir.load(graph)
    AttachFunctions()(model)
    ir.save(model, graph.with_name("whole.onnx"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.with_name("whole.onnx"), options, providers=["CPUExecutionProvider"])
    return session.run(["denoised"], feeds)[0].astype(np.float64)


def in_torch(module, table, feeds):
    caches = [state.input for state in table.states]
    plain = [torch.from_numpy(feeds[tensor.name]) for tensor in table.inputs if tensor.name not in caches]
    with torch.no_grad():
        return DenoiserPass(module)(*plain, [torch.from_numpy(feeds[name]) for name in caches])[0].double().numpy()


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
def test_a_pass_agrees_with_the_simulation_far_closer_than_with_the_exact_pass(exported, tmp_path, choice):
    folder, table, checkpoint, module = exported
    feeds = inputs(table)

    def choose(name):
        is_block = name.startswith("blocks.") and checkpoint[name].shape[1] == 64
        return choice if is_block else None

    file, result, layers = write_handmade(tmp_path, folder / table.file, checkpoint, choose)
    write_graph(folder / table.file, file, result, tmp_path)
    found = in_onnx_runtime(tmp_path / table.file, feeds)

    exact, handles = in_torch(module, table, feeds), []
    for name, layer in layers.items():
        place = module.get_submodule(name.removesuffix(".weight"))
        tensors = {
            key.removeprefix(f"{name}."): torch.from_numpy(np.array(value)) for key, value in layer.tensors.items()
        }
        handles.append(SimulatedLinear(layer.result, tensors, place.bias).replace(place))
    simulated = in_torch(module, table, feeds)
    for handle in handles:
        handle.remove()
    lost = np.linalg.norm(simulated - exact)

    assert len(layers) == 20 and 0 < lost < 0.5 * np.linalg.norm(exact)
    assert np.linalg.norm(found - simulated) < 0.15 * lost


def test_w4a4_nodes_compute_what_the_torch_op_makes_of_their_inputs(exported, tmp_path):
    """Node by node: codes that fall on the other side of a rounding make whole passes differ by about the error of
    quantization, however close their arithmetic is."""
    folder, table, checkpoint, _ = exported
    choice = {"weights": "int4", "activations": "int4", "rank": 8, "pre_scale": FACTORS}

    def choose(name):
        return choice if name.startswith("blocks.") and checkpoint[name].shape[1] == 64 else None

    file, result, layers = write_handmade(tmp_path, folder / table.file, checkpoint, choose)
    write_graph(folder / table.file, file, result, tmp_path)
    model = ir.load(tmp_path / table.file)
    AttachFunctions()(model)
    nodes = [node for node in model.graph if node.op_type == "W4A4Linear"]
    assert len(nodes) == len(layers) == 20
    # ONNX Runtime computes float16 in float32 and rounds where a Cast says so, not after an Add or a Gelu.
    rounded = [node for node in nodes if node.inputs[0].producer().op_type == "Cast"]
    assert len(rounded) >= 8
    shown = list(dict.fromkeys(value for node in rounded for value in (node.inputs[0], node.outputs[0])))
    model.graph.outputs.extend(shown)
    ir.save(model, tmp_path / "shown.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "shown.onnx", providers=["CPUExecutionProvider"])
    values = dict(zip(shown, session.run([value.name for value in shown], inputs(table)), strict=True))
    for node in rounded:
        parameters = [torch.from_numpy(np.array(value.const_value.numpy())) for value in node.inputs[1:]]
        x, found = values[node.inputs[0]], values[node.outputs[0]].astype(np.float64)
        wanted = torch_op()(torch.from_numpy(x), *parameters, node.attributes["rotate"].as_int()).numpy()
        assert np.abs(found - wanted).max() <= 4 * np.finfo(np.float16).eps * np.abs(wanted).max()
