"""Decoding latent frame by latent frame makes the frames that decoding the whole chunk makes."""

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import onnx_ir as ir  # noqa: E402

from rtgen.build.plan import plan_build  # noqa: E402
from rtgen.config.model import ModelConfig  # noqa: E402
from rtgen.engine import trt  # noqa: E402
from rtgen.engine.builder import EngineJob, build_engine  # noqa: E402
from rtgen.engine.manifest import ComponentEntry, resolve_shape  # noqa: E402
from rtgen.engine.package import open_package, write_manifest  # noqa: E402
from rtgen.export.components import export_component  # noqa: E402
from rtgen.models.registry import load  # noqa: E402
from rtgen.passes.base import run_passes  # noqa: E402
from rtgen.passes.decompose_attention import DecomposeAttention  # noqa: E402
from rtgen.passes.simplify import Simplify  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.runtime.backends import open_backend  # noqa: E402
from rtgen.runtime.decode import Decoder  # noqa: E402

CHUNKS = 3


def exported(model, count, precision):
    """The decoder's graph for ``count`` latent frames at a time, with its weights inside."""
    config = model.config.model_copy(update={"decode_frames": count})
    module, _ = load("decoder", config, model.weights, precision)
    return export_component("decoder", config, module, precision)


def with_decoder(package, manifest, graph, folder):
    """A copy of a package with another decoder."""
    shutil.copytree(package, folder)
    ir.save(graph.model, folder / "decoder.onnx")
    entry = ComponentEntry(file="decoder.onnx", inputs=graph.inputs, outputs=graph.outputs, states=graph.states)
    write_manifest(folder, manifest.model_copy(update={"components": {**manifest.components, "decoder": entry}}))
    return folder


def decoded(folder, sizes):
    """What a package's decoder makes of random latents: the frames of each chunk, and the states at the end."""
    package = open_package(folder)
    backend = open_backend(package)
    denoiser, session = backend.open("denoiser"), backend.open("decoder")
    denoiser.allocate(sizes)
    decoder = Decoder(session, package.manifest.model)
    decoder.start(sizes)
    random, frames = np.random.default_rng(0), []
    for _ in range(CHUNKS):
        shape = denoiser.read("denoised").shape
        denoiser.write("denoised", random.standard_normal(shape).astype(np.float32))
        frames.append(decoder.decode(denoiser))
    states = {state.output: session.read(state.output) for state in session.component.states}
    backend.close()
    return frames, states


@pytest.mark.parametrize("name", ["tiny", "tiny-wan", "tiny-taehv"])
def test_the_frames_and_states_of_a_stream_are_those_of_whole_chunks(tiny_models, tiny_built, tmp_path, name):
    model, built, sizes = tiny_models[name], tiny_built(name), {"rows": 2, "columns": 3}
    folders = {model.config.decoded_at_once: built.package}
    (other,) = {1, 3} - folders.keys()
    folders[other] = with_decoder(
        built.package, built.manifest, exported(model, other, "float32"), tmp_path / "package"
    )
    (whole, expected), (single, states) = decoded(folders[3], sizes), decoded(folders[1], sizes)
    dropped = model.config.dropped_frames
    assert dropped == (0 if name == "tiny" else 3)
    assert [len(chunk) for chunk in whole] == [len(chunk) for chunk in single] == [12 - dropped, 12, 12]
    for found, reference in zip(single, whole, strict=True):
        assert reference.std() > 20
        difference = np.abs(found.astype(int) - reference)
        assert difference.max() <= 1 and difference.mean() < 1e-3  # a rounding that tips over
    for state, value in expected.items():
        scale = float(np.abs(value).max())
        np.testing.assert_allclose(states[state], value, atol=1e-4 * scale, err_msg=state)


@pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
def test_tensorrt_builds_the_autoencoder_for_one_latent_frame(tiny_models, tmp_path):
    graph = exported(tiny_models["tiny-wan"], 1, "float16")
    model = run_passes(graph.model, [Simplify(frozenset(graph.model.graph.initializers)), DecomposeAttention()])
    ir.save(model, tmp_path / "decoder.onnx")
    shapes = {tensor.name: resolve_shape(tensor.shape, {"rows": 3, "columns": 3}) for tensor in graph.inputs}
    ranges = {tensor.name: (shapes[tensor.name],) * 3 for tensor in graph.inputs if "rows" in str(tensor.shape)}
    job = EngineJob(
        "decoder", "tensorrt_rtx", tmp_path / "decoder.onnx", tmp_path, tmp_path / "decoder.engine", "8.9", (ranges,)
    )
    assert build_engine(job, SilentProgress(), stage="engine").activation_bytes > 0


def test_it_must_divide_the_chunk(tiny_models):
    fields = tiny_models["tiny"].config.model_dump()
    assert ModelConfig.model_validate(fields | {"decode_frames": 1}).decoded_at_once == 1
    assert ModelConfig.model_validate(fields).decoded_at_once == 3
    with pytest.raises(ValueError, match="decode_frames 2 must divide chunk 3"):
        ModelConfig.model_validate(fields | {"decode_frames": 2})


def test_another_number_is_another_package(tiny_models, monkeypatch):
    model = tiny_models["tiny"]
    monkeypatch.setenv("RTGEN_CONFIGS", str(model.configs))
    plan = plan_build(model.request())
    other = plan_build(model.request())
    object.__setattr__(other, "model", plan.model.model_copy(update={"decode_frames": 1}))
    assert plan.export_key != other.export_key
