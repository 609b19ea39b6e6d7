"""The torch backend on the processor: it plays what ONNX Runtime plays, through the same pipeline."""

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.build.request import BuildRequest  # noqa: E402
from rtgen.build.verify import compare_with_onnxruntime  # noqa: E402
from rtgen.build.walk import build  # noqa: E402
from rtgen.engine.package import open_package  # noqa: E402
from rtgen.errors import NoGpuError, SizeError  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.runtime.backends import open_backend  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402
from rtgen.torch_backend import backend as backend_module  # noqa: E402
from rtgen.torch_backend.session import TorchSession  # noqa: E402
from tests.torch_backend.packages import torch_package  # noqa: E402

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"


@pytest.fixture
def played(tiny_models, tiny_built, monkeypatch):
    """Frames of the first chunks of a model, with torch and with ONNX Runtime."""

    def play(name, count, **options):
        model = tiny_models[name]
        monkeypatch.setenv("RTGEN_CONFIGS", str(model.configs))
        found = []
        for package in (torch_package(model), tiny_built(name).package):
            with Pipeline.open(package) as pipeline:
                found.append(np.concatenate(list(pipeline.stream(PROMPT, frames=count, **options))))
        return found

    return play


@pytest.mark.parametrize("name", ["tiny", "tiny-wan", "tiny-taehv", "tiny-host"])
def test_frames_are_those_of_onnxruntime_within_rounding(played, name):
    torch_frames, frames = played(name, 54, seed=5, size=(32, 48))  # five chunks: the ring of three turns over
    assert frames.std() > 10
    np.testing.assert_allclose(torch_frames.astype(int), frames.astype(int), atol=1)
    assert (torch_frames != frames).mean() < 0.01


@pytest.mark.slow  # it is exported
def test_the_bundled_model_plays_the_same(tmp_path):
    requests = [BuildRequest("cpu", recipe="fp32", store=tmp_path, backend=name) for name in ("torch", "onnxruntime")]
    found = []
    for request in requests:
        with Pipeline.open(build(request, SilentProgress()).package) as pipeline:
            prompt = pipeline.manifest.model.example_prompts[0]
            found.append(np.concatenate(list(pipeline.stream(prompt, seed=3, frames=24, size=(96, 96)))))
    np.testing.assert_allclose(found[0].astype(int), found[1].astype(int), atol=1)
    assert (found[0] != found[1]).mean() < 0.001


def test_verify_finds_every_tensor_and_state_within_its_limits(tiny):
    report = compare_with_onnxruntime(torch_package(tiny), SilentProgress(), weights=tiny.weights, store=tiny.store)
    assert report.passed
    assert {"key_cache_1_out", "past_0_out", "frames", "change"} <= {row.tensor for row in report.rows}


@pytest.mark.slow  # two more exports
@pytest.mark.parametrize("bits", [8, 4])
def test_a_ring_of_codes_is_the_one_of_the_graphs(tiny, bits):
    package = torch_package(tiny, kv_bits=bits)
    report = compare_with_onnxruntime(package, SilentProgress(), weights=tiny.weights, store=tiny.store)
    assert [row for row in report.rows if not row.passed] == []
    assert "kv_values_0_out" in {row.tensor for row in report.rows}


def test_a_switched_prompt_and_a_fresh_stream_are_those_of_onnxruntime(tiny_models, tiny_built, monkeypatch):
    monkeypatch.setenv("RTGEN_CONFIGS", str(tiny_models["tiny"].configs))
    streams = []
    for package in (torch_package(tiny_models["tiny"]), tiny_built("tiny").package):
        with Pipeline.open(package) as pipeline:
            stream = pipeline.stream(PROMPT, seed=1)
            frames = [next(stream) for _ in range(4)]
            pipeline.prompt = OTHER
            frames += [next(stream) for _ in range(2)]
            frames += list(pipeline.stream(PROMPT, seed=1, frames=12))
        streams.append(np.stack(frames).astype(int))
    np.testing.assert_allclose(streams[0], streams[1], atol=1)
    assert np.array_equal(streams[0][0], streams[0][-1])  # states were cleared
    assert not np.array_equal(streams[0][3], streams[0][4])


def test_streams_of_other_sizes_leave_nothing_behind(tiny):
    with Pipeline.open(torch_package(tiny)) as pipeline:
        first = np.concatenate(list(pipeline.stream(PROMPT, frames=24, size=(48, 48))))
        other = np.concatenate(list(pipeline.stream(PROMPT, frames=24, size=(32, 64))))
        again = np.concatenate(list(pipeline.stream(PROMPT, frames=24, size=(48, 48))))
        assert other.shape == (24, 32, 64, 3)
        assert np.array_equal(first, again)
        with pytest.raises(SizeError, match="does not serve 192x192"):
            pipeline.backend.open("denoiser").allocate({"rows": 12, "columns": 12})


def test_adaptive_steps_read_the_change_of_each_pass(tiny):
    with Pipeline.open(torch_package(tiny)) as pipeline:
        every = np.concatenate(list(pipeline.stream(PROMPT, frames=24)))
        fewer = np.concatenate(list(pipeline.stream(PROMPT, frames=24, error_budget=1e-9)))
        assert pipeline.passes.chunks == 2
        assert np.array_equal(every, fewer)


def test_denoising_ahead_gives_the_same_bits(tiny):
    package, found = torch_package(tiny), []
    for overlap in (False, True):
        with Pipeline.open(package, overlap=overlap) as pipeline:
            assert pipeline.overlaps is overlap
            found.append(np.concatenate(list(pipeline.stream(PROMPT, frames=60))))
    assert np.array_equal(*found)
    with Pipeline.open(package) as pipeline:  # on the processor a component takes all cores
        assert not pipeline.overlaps


@pytest.fixture
def denoiser(tiny):
    backend = open_backend(open_package(torch_package(tiny)))
    session = backend.open("denoiser")
    session.allocate({"rows": 3, "columns": 4})
    yield session
    backend.close()


def test_a_session_refuses_what_does_not_fit_its_buffers(denoiser):
    with pytest.raises(ValueError, match="takes float32"):
        denoiser.write("sigma", np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="takes int64"):
        denoiser.write("write_index", np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="written by the host"):
        denoiser.copy("valid_length", denoiser, "write_index")
    with pytest.raises(TypeError, match="one backend"):
        denoiser.copy("clean", object(), "denoised")


@pytest.mark.parametrize(("start", "valid"), [(0, 12), (8 * 12, 9 * 12), (-36, 36), (0, 10 * 12)])
def test_a_chunk_that_does_not_fit_the_ring_is_refused(denoiser, start, valid):
    denoiser.write("write_index", np.array([start]))
    denoiser.write("valid_length", np.array([valid]))
    with pytest.raises(ValueError, match="does not fit the ring"):
        denoiser.run()


def test_reset_clears_states_and_close_releases_buffers(denoiser):
    assert isinstance(denoiser, TorchSession)
    denoiser.write("write_index", np.array([0]))
    denoiser.write("valid_length", np.array([36]))
    denoiser.write("clean", np.ones((1, 4, 3, 6, 8), np.float32))
    denoiser.run()
    assert np.abs(denoiser.read("value_cache_0")[:, :, :36]).max(-1).min() > 0
    assert not denoiser.read("value_cache_0")[:, :, 36:].any()
    assert np.array_equal(denoiser.read("value_cache_0"), denoiser.read("value_cache_0_out"))
    denoiser.reset()
    assert not denoiser.read("value_cache_0").any()
    denoiser.close()
    denoiser.close()
    with pytest.raises(ValueError, match=r"allocate\(\) first"):
        denoiser.read("denoised")
    with pytest.raises(ValueError, match="closed"):
        denoiser.run()


def test_a_gpu_package_says_when_torch_has_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(NoGpuError, match="built without CUDA") as caught:
        backend_module.find_gpu("9.0")
    assert caught.value.exit_code == 3 and "pytorch.org" in caught.value.hint


def test_weights_of_another_float_type_compute_in_the_precision(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = shutil.copytree(tiny.weights, tmp_path / "weights")
    for file in weights.glob("*.safetensors"):
        save_file({name: tensor.float() for name, tensor in load_file(file).items()}, file)
    packages = torch_package(tiny), torch_package(tiny, weights=weights)
    assert packages[0] != packages[1]
    found = []
    for package in packages:
        with Pipeline.open(package) as pipeline:
            found.append(np.concatenate(list(pipeline.stream(PROMPT, frames=12))))
    assert np.array_equal(*found)
