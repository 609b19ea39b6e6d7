"""Builds whose decoder computes on codes: what is recorded, kept and refused, and that the package plays."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from rtgen.build.plan import plan_build  # noqa: E402
from rtgen.build.verify import compare_with_onnxruntime  # noqa: E402
from rtgen.build.walk import build  # noqa: E402
from rtgen.errors import CheckpointError  # noqa: E402
from rtgen.progress import SilentProgress  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402

QUIET = SilentProgress()


def cached(outcome):
    return {stage.name: stage.cached for stage in outcome.stages}


@pytest.fixture
def models(tiny, monkeypatch):
    monkeypatch.setenv("RTGEN_CONFIGS", str(tiny.configs))
    return tiny


def frames_of(package, chunks):
    with Pipeline.open(package) as pipeline:
        stream = pipeline.stream("a red kite drifts right over the sea")
        return np.concatenate([next(stream) for _ in range(chunks)]).astype(float)


def test_the_package_for_processors_decodes_on_codes(models, tiny_built):
    built = build(models.request(recipe="int8-cpu"), QUIET)
    assert set(cached(built)) == {"calibration", "ranges", "codes", "export", "quantize", "graphs", "engines"}
    decoder = built.manifest.components["decoder"]
    assert {state.dtype for state in decoder.inputs[1:]} == {"uint8"}
    exact, coded = frames_of(tiny_built("tiny").package, 3), frames_of(built.package, 3)
    assert exact.shape == coded.shape
    assert 0 < np.abs(exact - coded).mean() < 10

    # Another size takes other past frames; the decoder is the same.
    with Pipeline.open(built.package) as pipeline:
        stream = pipeline.stream("a red kite", size=(32, 64))
        assert next(stream).shape == (12, 32, 64, 3)

    report = compare_with_onnxruntime(built.package, QUIET, weights=models.weights, store=models.store)
    assert report.passed, [row for row in report.rows if not row.passed]


def test_a_single_first_frame_and_one_latent_frame_at_a_time(tiny_models, tiny_built, tmp_path, monkeypatch):
    wan = tiny_models["tiny-wan"]
    text = (wan.configs / "models" / "tiny-wan.toml").read_text(encoding="utf-8")
    (tmp_path / "models").mkdir()
    changed = text.replace('name = "tiny-wan"', 'name = "tiny-wan"\ndecode_frames = 1')
    (tmp_path / "models" / "tiny-wan.toml").write_text(changed, encoding="utf-8")
    monkeypatch.setenv("RTGEN_CONFIGS", str(tmp_path))
    built = build(wan.request(recipe="int8-cpu", store=tmp_path / "store"), QUIET)
    inputs = {tensor.name: tensor.dtype for tensor in built.manifest.components["decoder"].inputs}
    assert inputs["past_0"] == "uint8" and {"first", "latent_frames"} < set(inputs)
    exact, coded = frames_of(tiny_built("tiny-wan").package, 3), frames_of(built.package, 3)
    assert exact.shape == coded.shape and len(exact) == 33  # of 36, the first three do not exist
    assert 0 < np.abs(exact - coded).mean() < 10


def test_few_prompts_are_recorded_and_ones_own_are_taken(models, tmp_path):
    usual = plan_build(models.request(recipe="int8-cpu"))
    assert len(usual.calibration_prompts) == 4 and usual.has_coded_decoder
    own = tmp_path / "own.txt"
    own.write_text("a green bird\na blue bird\na red bird\na grey bird\na white bird\n", encoding="utf-8")
    mine = plan_build(models.request(recipe="int8-cpu", calibration_prompts=own))
    assert len(mine.calibration_prompts) == 5
    for key in ("ranges_key", "export_key", "package_key"):
        assert getattr(mine, key) != getattr(usual, key)
    assert mine.codes_key == usual.codes_key  # the denoiser's codes are not calibrated
    assert plan_build(models.request()).calibration_prompts == ()


def test_the_tiny_decoder_stays_as_it_is(tiny_models, monkeypatch):
    taehv = tiny_models["tiny-taehv"]
    monkeypatch.setenv("RTGEN_CONFIGS", str(taehv.configs))
    built = build(taehv.request(recipe="int8-cpu"), QUIET)
    assert not {"calibration", "ranges"} & set(cached(built))
    states = [tensor for tensor in built.manifest.components["decoder"].inputs if tensor.name.startswith("past")]
    assert {tensor.dtype for tensor in states} == {"float32"}


def test_a_decoder_with_broken_weights_is_refused(models, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = tmp_path / "weights"
    weights.mkdir()
    for file in models.weights.iterdir():
        (weights / file.name).write_bytes(file.read_bytes())
    tensors = load_file(weights / "decoder.0.safetensors")
    tensors["decoder.conv1.weight"][0] = torch.nan
    save_file(tensors, weights / "decoder.0.safetensors")
    with pytest.raises(CheckpointError, match=r"convolution decoder\.conv1 meets numbers that are not finite"):
        build(models.request(recipe="int8-cpu", weights=weights, store=tmp_path / "store"), QUIET)
