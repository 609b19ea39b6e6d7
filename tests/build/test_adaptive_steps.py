"""Adaptive steps in a built package: the change that a pass reports, and what a budget does to a stream."""

import shutil
from itertools import islice

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from rtgen.build.reference import ReferenceBackend
from rtgen.build.walk import export
from rtgen.engine.package import write_manifest
from rtgen.errors import UsageError
from rtgen.progress import SilentProgress
from rtgen.runtime.denoise import Denoiser
from rtgen.runtime.pipeline import Pipeline

PROMPT, OTHER = "a red kite drifts right over the sea", "a green bird over mountains at night"
FOUR = (1.0, 0.9, 0.75, 0.5)


@pytest.fixture(scope="module", params=["tiny", "tiny-wan"])
def package(request, tiny_built, tmp_path_factory):
    """With four noise levels instead of two; ``tiny`` has the sampler ``euler``, ``tiny-wan`` ``renoise``."""
    built, folder = tiny_built(request.param), tmp_path_factory.mktemp("packages") / request.param
    shutil.copytree(built.package, folder)
    model = built.manifest.model.model_copy(update={"sigmas": FOUR})
    write_manifest(folder, built.manifest.model_copy(update={"model": model}))
    return folder


@pytest.fixture
def pipeline(package):
    with Pipeline.open(package) as opened:
        yield opened


@pytest.fixture
def seen(monkeypatch):
    """Latents before and after each pass and the change it reports, by noise level, in order."""
    passes = []
    run = Denoiser._run

    def watched(self, sigma):
        before = self.session._buffers.current("clean").copy()
        run(self, sigma)
        passes.append((sigma, before, self.session.read("denoised"), self.session.read("change")))

    monkeypatch.setattr(Denoiser, "_run", watched)
    return passes


def play(pipeline, chunks=4, **options):
    return np.concatenate(list(islice(pipeline.stream(PROMPT, **options), chunks)))


def test_the_change_of_a_pass_is_how_far_the_estimate_moved(pipeline, seen):
    play(pipeline, chunks=2)
    assert [sigma for sigma, *_ in seen] == [*FOUR, 0.0] * 2
    for sigma, before, after, change in seen:
        expected = np.sqrt(np.mean((after.astype(np.float64) - before) ** 2))
        assert change.dtype == np.float32 and change.shape == (1,)
        np.testing.assert_allclose(change[0], expected, rtol=1e-5)
        assert (expected > 0) == (sigma > 0)


def test_half_precision_graphs_compute_the_change_in_single_precision(tiny, tmp_path):
    graphs = export(tiny.request("rtx4080-laptop", store=tmp_path), SilentProgress())
    session = ReferenceBackend(graphs, tiny.weights).open("denoiser")
    session.allocate({"rows": 3, "columns": 2})
    assert session.component.states and {tensor.dtype for tensor in session.component.inputs} >= {"float16"}
    random = np.random.default_rng(0)
    clean, noise = random.standard_normal((2, 1, 4, 3, 6, 4)).astype(np.float32)
    for name, value in (("clean", clean), ("noise", noise), ("sigma", np.array([0.5], np.float32))):
        session.write(name, value)
    session.write("valid_length", np.array([18], np.int64))
    session.run()
    moved = session.read("denoised").astype(np.float64) - clean
    np.testing.assert_allclose(session.read("change"), [np.sqrt(np.mean(moved**2))], rtol=1e-6)


def test_a_budget_of_nothing_is_no_budget(pipeline):
    plain = play(pipeline)
    assert (pipeline.passes.average, pipeline.passes.saved) == (4.0, 0.0)
    assert np.array_equal(play(pipeline, error_budget=0.0), plain)
    assert np.array_equal(play(pipeline, error_budget=1e-9), plain)  # none that is ever met
    assert pipeline.passes.passes == 16


def test_a_huge_budget_leaves_two_passes_a_chunk_and_the_same_bits_every_time(pipeline, seen):
    plain = play(pipeline)
    seen.clear()
    short = play(pipeline, error_budget=1e6)
    assert [sigma for sigma, *_ in seen] == [1.0, 0.9, 0.5, 0.0, *[1.0, 0.5, 0.0] * 3]
    assert pipeline.passes.average == 2.25 and pipeline.passes.saved == pytest.approx(0.4375)
    assert short.shape == plain.shape and not np.array_equal(short, plain)
    assert np.array_equal(play(pipeline, error_budget=1e6), short)


def test_a_switched_prompt_gets_a_second_look(pipeline, seen):
    stream = pipeline.stream(PROMPT, error_budget=1e6)
    for _ in range(2):
        next(stream)
    pipeline.prompt = OTHER
    seen.clear()
    next(stream)
    assert [sigma for sigma, *_ in seen] == [0.0, 0.0, 1.0, 0.9, 0.5, 0.0]  # both chunks read anew, then three passes


@pytest.mark.parametrize("budget", [-0.1, float("nan"), float("inf")])
def test_an_impossible_budget_is_refused_at_the_call(pipeline, budget):
    with pytest.raises(UsageError, match="error budget"):
        pipeline.stream(PROMPT, error_budget=budget)
