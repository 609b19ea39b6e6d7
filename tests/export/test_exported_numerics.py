"""The exported graphs in ONNX Runtime compute what the torch modules do, at sizes they were not traced at."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import rtgen  # noqa: E402
from rtgen.engine.manifest import resolve_shape  # noqa: E402
from rtgen.export.decoder import DecoderStep  # noqa: E402
from rtgen.export.denoiser import DenoiserPass  # noqa: E402
from rtgen.export.tiny_decoder import TinyDecoderStep  # noqa: E402
from rtgen.runtime.rope import axis_table  # noqa: E402

SIZES = [{"rows": 2, "columns": 2}, {"rows": 2, "columns": 4}, {"rows": 4, "columns": 3}]
DTYPES = {"float32": np.float32, "int64": np.int64}


@pytest.fixture(scope="module", params=["tiny", "tiny-wan", "tiny-taehv"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def build(tiny_built, name):
    return tiny_built(name)


@pytest.fixture(scope="module")
def modules(tiny_models, name):
    return tiny_models[name].modules()


@pytest.fixture(scope="module")
def run(build):
    """Runs a component of the package on arrays by name, and returns its outputs by name."""
    found = {}

    def call(component, feeds):
        entry = build.manifest.components[component]
        if component not in found:
            path = str(build.package / entry.file)
            found[component] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [tensor.name for tensor in entry.outputs]
        return dict(zip(names, found[component].run(names, feeds), strict=True))

    return call


def random_inputs(entry, sizes, seed):
    random = np.random.default_rng(seed)
    return {
        tensor.name: random.standard_normal(resolve_shape(tensor.shape, sizes)).astype(DTYPES[tensor.dtype])
        for tensor in entry.inputs
    }


def tensors(arrays):
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("sigma", "slot", "valid"), [(1.0, 0, 3), (0.75, 3, 9), (0.0, 6, 9)])
def test_a_denoiser_pass(run, build, modules, sizes, sigma, slot, valid):
    entry, model = build.manifest.components["denoiser"], build.manifest.model
    frame = sizes["rows"] * sizes["columns"]
    feeds = random_inputs(entry, sizes, seed=frame) | {
        "sigma": np.array([sigma], np.float32),
        "write_index": np.array([slot * frame]),
        "valid_length": np.array([valid * frame]),
        "rope_time": axis_table(np.arange(30, 33), model.rope_split[0], model.rope_theta),
        "rope_height": axis_table(np.arange(sizes["rows"]), model.rope_split[1], model.rope_theta),
        "rope_width": axis_table(np.arange(sizes["columns"]), model.rope_split[2], model.rope_theta),
    }
    caches = [state.input for state in entry.states]
    plain = [tensor.name for tensor in entry.inputs if tensor.name not in caches]
    with torch.no_grad():
        expected = DenoiserPass(modules["denoiser"])(
            *tensors(feeds[name] for name in plain), tensors(feeds[name] for name in caches)
        )
    found = run("denoiser", feeds)
    assert len(found) == len(expected)
    for (name, array), reference in zip(found.items(), expected, strict=True):
        np.testing.assert_allclose(array, reference.numpy(), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("opening", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_decoder_step(run, build, modules, sizes, opening):
    entry, states = build.manifest.components["decoder"], {}
    feeds = random_inputs(entry, sizes, seed=1)
    if "latent_frames" in feeds:
        feeds["latent_frames"] = np.array([1])
    if "first" in feeds:
        feeds["first"] = np.array([opening], np.float32)
    for state in entry.states:
        feeds[state.input] *= 1 - opening
        states[state.input] = feeds[state.input]
    step = (TinyDecoderStep if build.manifest.model.name == "tiny-taehv" else DecoderStep)(modules["decoder"])
    more = {name: torch.from_numpy(feeds[name]) for name in ("first", "latent_frames") if name in feeds}
    with torch.no_grad():
        frames, *present = step(torch.from_numpy(feeds["latents"]), tensors(states.values()), **more)
    found = run("decoder", feeds)
    levels = found.pop("frames")
    assert levels.dtype == np.uint8 and levels.shape == tuple(frames.shape) and levels.std() > 20
    assert np.abs(levels.astype(int) - frames.numpy()).max() <= 1
    for (output, array), reference in zip(found.items(), present, strict=True):
        scale = float(reference.abs().max())
        np.testing.assert_allclose(array, reference.numpy(), atol=1e-4 * scale, err_msg=output)


@pytest.mark.parametrize("words", [1, 5, 12])
def test_the_text_encoder(run, modules, words):
    ids = np.random.default_rng(words).integers(2, 200, (1, 12))
    mask = (np.arange(12)[None] < words).astype(np.int64)
    with torch.no_grad():
        expected = modules["text_encoder"](*tensors((ids, mask)))
    found = run("text_encoder", {"ids": ids, "mask": mask})
    np.testing.assert_allclose(found["context"], expected.numpy(), atol=1e-4)
    assert np.abs(found["context"][:, words:]).max(initial=0) == 0


def test_the_graphs_hold_no_weights_and_no_path_of_this_machine(build):
    for component in build.manifest.components.values():
        file = build.package / component.file
        graph = onnx.load(file, load_external_data=False).graph
        inside = [onnx.numpy_helper.to_array(value) for value in graph.initializer if not value.external_data]
        assert sum(array.nbytes for array in inside) < 5000
        places = {item.value for value in graph.initializer for item in value.external_data if item.key == "location"}
        assert places == set(component.weights)
        for origin in (Path(rtgen.__file__).parents[1], Path(torch.__file__).parents[1], build.package):
            assert str(origin).encode() not in file.read_bytes()
