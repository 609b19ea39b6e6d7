"""Streams that are longer than the positions in time reach."""

import itertools
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.engine.package import write_manifest  # noqa: E402
from rtgen.runtime import pipeline as pipeline_module  # noqa: E402
from rtgen.runtime.chunk_memory import ChunkMemory  # noqa: E402
from rtgen.runtime.pipeline import Pipeline  # noqa: E402
from tests.build.reference_sampler import ReferenceSampler  # noqa: E402

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"
LIMIT = 15  # window 9: three chunks in the ring, and the fifth chunk is the last before positions start anew


def limited(config, limit):
    return config.model_copy(update={"cache": config.cache.model_copy(update={"position_limit": limit})})


@pytest.fixture
def package(tiny_built, tmp_path):
    """Makes a package of a model whose positions end early."""

    def make(name, limit):
        built, folder = tiny_built(name), tmp_path / f"{name}-{limit}"
        shutil.copytree(built.package, folder)
        model = built.manifest.model.model_copy(update={"position_limit": limit})
        write_manifest(folder, built.manifest.model_copy(update={"model": model}))
        return folder

    return make


@pytest.mark.parametrize("name", ["tiny", "tiny-wan"])
def test_frames_past_the_limit_are_those_of_the_sampler_in_plain_torch(tiny_models, package, name):
    chunks, switch = 9, 7
    model = tiny_models[name]
    reference = ReferenceSampler(model.modules(), limited(model.config, LIMIT), seed=5, size=(32, 48))
    expected = reference.frames({0: PROMPT, switch: OTHER}, chunks)
    with Pipeline.open(package(name, LIMIT)) as pipeline:
        stream = pipeline.stream(PROMPT, seed=5, size=(32, 48))
        found = [next(stream) for _ in range(switch)]
        pipeline.prompt = OTHER
        found += [next(stream) for _ in range(chunks - switch)]
    assert np.abs(np.concatenate(found).astype(int) - expected).mean() < 0.5


def test_a_stream_rolls_past_the_limit_again_and_again_with_the_same_bits_and_a_memory_that_stays(package, monkeypatch):
    memories = []

    class Watched(ChunkMemory):
        def rebase(self):
            super().rebase()
            memories.append([position for position, _ in self.chunks])

    monkeypatch.setattr(pipeline_module, "ChunkMemory", Watched)
    with Pipeline.open(package("tiny", LIMIT)) as pipeline:

        def play():
            return np.stack(list(itertools.islice(pipeline.stream(PROMPT, size=(32, 32)), 32)))

        first = play()
        assert memories == [[0, 3]] * len(memories) and len(memories) == 9
        assert first.std(axis=(1, 2, 3, 4)).min() > 10  # no chunk has faded
        assert np.array_equal(first, play())


def test_counting_positions_anew_changes_nothing_that_attention_sees(tiny_models):
    model, at = tiny_models["tiny-wan"], LIMIT // 3

    def played(limit, **options):
        sampler = ReferenceSampler(model.modules(), limited(model.config, limit), seed=2, size=(32, 32))
        latents = sampler.latents({0: PROMPT}, at + 3, **options)
        return torch.stack(latents), sampler.pixels(torch.cat(latents, dim=2)).astype(int)

    (rebased, frames), (refilled, _), (plain, plain_frames) = played(LIMIT), played(1024, refill_at=(at,)), played(1024)
    assert torch.equal(rebased[:at], plain[:at])
    assert (rebased - refilled).abs().max() < 1e-4  # positions matter by their differences only
    assert np.abs(frames - plain_frames).mean() < 2  # and what a chunk saw of its own past matters little
    assert not torch.equal(rebased[at], plain[at])
