"""A text encoder on the host: what the package holds, what its memory plan counts, and that it plays the same."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import onnx_ir as ir  # noqa: E402

from rtgen.build.plan import plan_build  # noqa: E402
from rtgen.build.walk import build  # noqa: E402
from rtgen.engine import builder, trt  # noqa: E402
from rtgen.engine.builder import EngineResult  # noqa: E402
from rtgen.models.registry import load, outline  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.runtime.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"
needs_rtx = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


@pytest.fixture
def host(tiny_models, monkeypatch, tmp_path):
    monkeypatch.setenv("RTGEN_CONFIGS", str(tiny_models["tiny-host"].configs))
    monkeypatch.setenv("RTGEN_CACHE", str(tmp_path / "cache"))
    return tiny_models["tiny-host"]


def fake_engine(job, progress, *, stage):
    job.output.write_bytes(b"engine of " + job.name.encode())
    return EngineResult(job.output, job.output.stat().st_size, 1000, 2000, 0.0, 1, {}, ())


@needs_rtx
def test_a_gpu_package_holds_engines_and_one_onnx_file_that_its_memory_plan_leaves_out(host, monkeypatch):
    plan = plan_build(host.request("rtx4080-laptop"))
    assert [plan.precision_of(component) for component in ("text_encoder", "denoiser")] == ["float32", "float16"]
    monkeypatch.setattr(builder, "build_engine", fake_engine)
    manifest = build(host.request("rtx4080-laptop"), SilentProgress()).manifest
    files = {name: (part.file, part.runs_on, part.weights) for name, part in manifest.components.items()}
    assert files == {
        "text_encoder": ("text_encoder.onnx", "host", ("text_encoder.0.safetensors",)),
        "denoiser": ("denoiser.engine", "device", ()),
        "decoder": ("decoder.engine", "device", ()),
    }
    assert {"text_encoder.onnx", "text_encoder.0.safetensors"} < manifest.files.keys()
    assert (manifest.memory_plan.weights, manifest.memory_plan.activations) == (2000, 2000)


def test_its_graph_looks_words_up_as_they_are_stored_and_is_the_one_of_real_weights(host, tiny_built):
    built = tiny_built("tiny-host")
    graph = ir.load(built.package / "text_encoder.onnx").graph
    tables = [node.inputs[0] for node in graph if node.op_type == "Gather" and node.inputs[0].is_initializer()]
    assert tables and {table.dtype for table in tables} == {ir.DataType.FLOAT16}
    outlined, _ = outline("text_encoder", host.config, host.weights, "float32")
    loaded, _ = load("text_encoder", host.config, host.weights, "float32")
    assert [(n, p.shape, p.dtype) for n, p in outlined.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in loaded.named_parameters()
    ]
    assert sum(p.untyped_storage().nbytes() for p in outlined.parameters()) < 1000


def test_frames_are_those_of_a_resident_encoder_and_it_is_open_only_for_a_prompt(host, tiny_built, monkeypatch):
    opened, open_component = [], OnnxRuntimeBackend.open

    def watched(backend, component):
        session = open_component(backend, component)
        opened.append((component, session))
        return session

    with Pipeline.open(tiny_built("tiny").package) as pipeline:
        expected = np.concatenate(list(pipeline.stream(PROMPT, frames=24)))
    monkeypatch.setattr(OnnxRuntimeBackend, "open", watched)
    with Pipeline.open(tiny_built("tiny-host").package) as pipeline:
        assert [name for name, _ in opened] == ["denoiser", "decoder"]
        frames = np.concatenate(list(pipeline.stream(PROMPT, frames=24)))
        assert [name for name, _ in opened] == ["denoiser", "decoder", "text_encoder"]
        assert opened[-1][1]._native is None
        pipeline.prompt = OTHER
        again = np.concatenate(list(pipeline.stream(PROMPT, frames=24)))
        assert len(opened) == 3 and np.array_equal(again, frames)  # its context was kept
        next(pipeline.stream(OTHER))
        assert len(opened) == 4
    with Pipeline.open(tiny_built("tiny-host").package) as pipeline:  # another process
        assert np.array_equal(np.concatenate(list(pipeline.stream(PROMPT, frames=24))), frames)
        assert [name for name, _ in opened[4:]] == ["denoiser", "decoder"]
    assert np.abs(frames.astype(int) - expected).mean() < 0.5
