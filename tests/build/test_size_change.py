"""Frames of another size from one chunk on: the video goes on from what is remembered of it."""

from itertools import islice

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.errors import SizeError
from rtgen.runtime.denoise import Denoiser
from rtgen.runtime.pipeline import Pipeline
from rtgen.runtime.resize import resized_latents

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"
SMALL, WIDE = (32, 48), (48, 64)
MODELS = ["tiny", "tiny-wan", "tiny-taehv"]


@pytest.fixture(params=MODELS)
def folder(request, tiny_built):
    return tiny_built(request.param).package


def streamed(pipeline, plan, chunks=6, **options):
    """Chunks of a stream; ``plan``: what to assign before a chunk."""
    stream = pipeline.stream(PROMPT, seed=5, size=SMALL, **options)
    found = []
    for chunk in range(chunks):
        for name, value in plan.get(chunk, {}).items():
            setattr(pipeline, name, value)
        found.append(next(stream))
    stream.close()
    return found


def test_chunks_have_the_size_that_was_assigned_before_them(folder):
    with Pipeline.open(folder) as pipeline:
        plan = {2: {"size": WIDE}, 4: {"size": SMALL}}
        chunks = streamed(pipeline, plan)
        assert pipeline.size == SMALL
        plain = streamed(pipeline, {})
    assert [chunk.shape[1:3] for chunk in chunks] == [SMALL, SMALL, WIDE, WIDE, SMALL, SMALL]
    assert [len(chunk) for chunk in chunks] == [len(chunk) for chunk in plain]
    assert all(np.array_equal(*pair) for pair in zip(chunks[:2], plain[:2], strict=True))
    assert not np.array_equal(chunks[4], plain[4])


def test_the_ring_is_filled_with_resized_latents_and_noise_and_time_go_on(tiny_built, monkeypatch):
    passes, entered = [], []
    run, enter = Denoiser._run, Denoiser._enter

    def watched(self, sigma):
        passes.append((sigma, self.session._buffers.current("clean").copy()))
        run(self, sigma)

    monkeypatch.setattr(Denoiser, "_run", watched)
    monkeypatch.setattr(Denoiser, "_enter", lambda self, place: (entered.append(place), enter(self, place)))
    with Pipeline.open(tiny_built("tiny").package, overlap=False) as pipeline:
        stream, latents = pipeline.stream(PROMPT, seed=5, size=SMALL), []
        for _ in islice(stream, 2):
            latents.append(pipeline._denoiser.read("denoised"))
        passes.clear(), entered.clear()
        pipeline.size = WIDE
        next(stream)
        model = pipeline.manifest.model
    refills = passes[:2]
    assert entered == [0, 3, 6] and len(passes) == 2 + len(model.sigmas) + 1
    for (sigma, clean), before in zip(refills, latents, strict=True):
        assert sigma == 0.0 and np.array_equal(clean, resized_latents(before, clean.shape[-2:]))


def test_overlapping_gives_the_same_bits(folder):
    plan = {1: {"size": WIDE}, 3: {"prompt": OTHER, "size": SMALL}, 4: {"size": WIDE}}
    with Pipeline.open(folder, overlap=False) as plain, Pipeline.open(folder, overlap=True) as overlapped:
        for one, other in zip(streamed(plain, plan), streamed(overlapped, plan), strict=True):
            assert np.array_equal(one, other)


def test_a_size_before_the_first_chunk_is_as_if_it_had_been_asked_for(folder):
    with Pipeline.open(folder) as pipeline:
        found = streamed(pipeline, {0: {"size": WIDE}}, 2)
        expected = list(islice(pipeline.stream(PROMPT, seed=5, size=WIDE), 2))
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_size_that_it_has_already_changes_nothing(folder):
    with Pipeline.open(folder) as pipeline:
        found, expected = streamed(pipeline, {2: {"size": SMALL}}, 4), streamed(pipeline, {}, 4)
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("size", [(33, 48), (0, 48), (16, 16), (128, 128)], ids=str)
def test_a_size_that_the_package_does_not_serve_is_refused_at_once(tiny_built, size):
    with Pipeline.open(tiny_built("tiny").package) as pipeline:
        stream = pipeline.stream(PROMPT, size=SMALL)
        next(stream)
        with pytest.raises(SizeError) as refused:
            pipeline.size = size
        assert refused.value.hint and pipeline.size == SMALL
        assert next(stream).shape[1:3] == SMALL


def test_a_stream_that_begins_forgets_a_size_that_was_assigned_before(tiny_built):
    with Pipeline.open(tiny_built("tiny").package) as pipeline:
        pipeline.size = WIDE
        assert next(pipeline.stream(PROMPT, size=SMALL)).shape[1:3] == SMALL
