"""What a built package plays: the sampler's own frames, the same ones for the same seed, and what was asked for."""

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.engine.package import write_manifest  # noqa: E402
from rtgen.errors import PromptError, SizeError, UsageError  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402
from tests.build.reference_sampler import ReferenceSampler  # noqa: E402

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"


@pytest.fixture(scope="module")
def pipeline(tiny_built):
    with Pipeline.open(tiny_built("tiny").package) as opened:
        yield opened


def play(pipeline, prompt=PROMPT, **options):
    return np.concatenate(list(pipeline.stream(prompt, **({"frames": 24} | options))))


@pytest.mark.parametrize("size", [(48, 48), (32, 64)])
@pytest.mark.parametrize("name", ["tiny", "tiny-wan", "tiny-taehv"])
def test_the_frames_are_those_of_the_sampler_in_plain_torch(tiny_models, tiny_built, name, size):
    chunks, switch = 7, 5  # past the window, so that the ring wraps, and on with another prompt
    model = tiny_models[name]
    reference = ReferenceSampler(model.modules(), model.config, seed=3, size=size)
    expected = reference.frames({0: PROMPT, switch: OTHER}, chunks)
    with Pipeline.open(tiny_built(name).package) as pipeline:
        stream = pipeline.stream(PROMPT, seed=3, size=size)
        found = [next(stream) for _ in range(switch)]
        pipeline.prompt = OTHER
        found += [next(stream) for _ in range(chunks - switch)]
    frames = np.concatenate(found)
    stride = model.config.autoencoder.temporal_stride
    assert frames.shape == expected.shape == (chunks * 3 * stride - model.config.dropped_frames, *size, 3)
    assert expected.std() > 20
    # A difference in the last bit grows from chunk to chunk, hence the average.
    assert np.abs(frames.astype(int) - expected).mean() < 0.5


def test_a_seed_gives_the_same_bits_again_and_another_seed_other_ones(pipeline):
    first = play(pipeline, seed=11)
    other = play(pipeline, seed=12)
    assert np.array_equal(first, play(pipeline, seed=11))
    for chunk in (slice(0, 12), slice(12, 24)):
        assert np.abs(first[chunk].astype(int) - other[chunk]).mean() > 5


def test_a_new_stream_ends_the_one_before(pipeline):
    before = pipeline.stream(PROMPT)
    next(before)
    assert np.array_equal(play(pipeline, seed=11), play(pipeline, seed=11))
    assert list(before) == []


@pytest.mark.parametrize("frames", [1, 12, 13, 40])
def test_as_many_frames_come_as_were_asked_for(pipeline, frames):
    found = play(pipeline, frames=frames)
    assert found.shape == (frames, 48, 48, 3) and found.dtype == np.uint8
    assert np.array_equal(found, play(pipeline, frames=48)[:frames])


def test_a_size_inside_the_profile_works_and_one_outside_is_refused_with_the_range(pipeline):
    assert play(pipeline, size=(64, 32)).shape == (24, 64, 32, 3)
    for size in ((48, 80), (16, 48)):
        with pytest.raises(SizeError, match=f"{size[0]}x{size[1]}") as refused:
            pipeline.stream(PROMPT, size=size)
        assert "32x32 to 64x64" in refused.value.hint
    with pytest.raises(SizeError, match="multiples of 16"):
        pipeline.stream(PROMPT, size=(50, 48))
    assert play(pipeline).shape == (24, 48, 48, 3)


def test_a_new_prompt_changes_the_frames_to_come_and_no_others(pipeline):
    plain = play(pipeline, frames=60)
    stream = pipeline.stream(PROMPT, frames=60)
    found = [next(stream), next(stream)]
    pipeline.prompt = OTHER
    assert pipeline.prompt == PROMPT  # until the next chunk
    with pytest.raises(PromptError):
        pipeline.prompt = " "
    found += list(stream)
    assert pipeline.prompt == OTHER
    frames = np.concatenate(found)
    assert frames.shape == plain.shape and np.array_equal(frames[:24], plain[:24])
    for start in (24, 36, 48):
        assert np.abs(frames[start : start + 12].astype(int) - plain[start : start + 12]).mean() > 2
    assert np.array_equal(play(pipeline, frames=60), plain)


@pytest.mark.parametrize("prompt", ["", "   ", "\u200b\n"])
def test_an_empty_prompt_is_refused_before_anything_runs(pipeline, prompt):
    with pytest.raises(PromptError, match="empty"):
        pipeline.stream(prompt)


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 2**63}, {"frames": 0}], ids=str)
def test_impossible_requests_are_refused_at_once(pipeline, options):
    with pytest.raises(UsageError):
        pipeline.stream(PROMPT, **options)


def test_a_window_of_one_chunk_remembers_nothing(tiny_models, tiny_built, tmp_path):
    built = tiny_built("tiny")
    folder = tmp_path / "package"
    shutil.copytree(built.package, folder)
    model = built.manifest.model.model_copy(update={"window": 3, "sink": 0})
    write_manifest(folder, built.manifest.model_copy(update={"model": model}))
    config = tiny_models["tiny"].config
    config = config.model_copy(update={"cache": config.cache.model_copy(update={"window": 3, "sink": 0})})
    expected = ReferenceSampler(tiny_models["tiny"].modules(), config, 0, (48, 48)).frames({0: PROMPT}, 3)
    with Pipeline.open(folder) as pipeline:
        assert np.abs(play(pipeline, frames=36).astype(int) - expected).mean() < 0.5
