"""Clips of simulated denoisers are those that a package would make, on any number of threads."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import torch

from rtgen.engine.package import open_package
from rtgen.errors import UsageError
from rtgen.fidelity.attributes import EvaluationPrompt
from rtgen.fidelity.clips import ClipFolder, make_clips, plan_clips
from rtgen.fidelity.passes import velocity_snr
from rtgen.fidelity.simulated_backend import sessions_of
from rtgen.fidelity.simulated_model import simulate
from rtgen.models.registry import load
from rtgen.runtime.pipeline import Pipeline

PROMPTS = tuple(EvaluationPrompt(prompt=text, values={}) for text in ("a red kite", "a white bird over a lake"))


@pytest.fixture(scope="module")
def package(tiny_built):
    return open_package(tiny_built("tiny").package)


def denoiser(tiny, precision="float32", damage=0.0):
    model = load("denoiser", tiny.config, tiny.weights, "float32")[0]
    if damage:
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in model.blocks.parameters():
                weight += damage * weight.std(correction=0) * torch.randn_like(weight)
    return sessions_of(tiny.config, simulate(model, precision))


def made(package, opened, plan):
    clips, fractions = {}, []
    make_clips(package, opened, plan, clips.__setitem__, fractions.append)
    assert list(clips) == list(range(len(plan.clips))) and fractions[-1] == 1.0
    return clips


def test_longer_clips_are_fewer_and_begin_like_the_shorter(tiny):
    plan = plan_clips(tiny.config, PROMPTS, 12, (30.0, 5.0), (48, 48))
    assert plan.lengths == (5.0, 30.0)
    assert [plan.count(seconds) for seconds in plan.lengths] == [12, 2]
    assert [plan.frames_of(number) for number in range(3)] == [480, 480, 80]
    assert [clip.seed for clip in plan.clips] == list(range(12))
    assert plan.clips[3].prompt == PROMPTS[1].prompt
    assert plan_clips(tiny.config, PROMPTS, 1, (5.0, 30.0), (48, 48)).count(30.0) == 1


@pytest.mark.parametrize(("count", "lengths", "size"), [(0, (5.0,), (48, 48)), (1, (), (48, 48)), (1, (5.0,), (8, 48))])
def test_a_plan_without_anything_to_see_is_refused(tiny, count, lengths, size):
    with pytest.raises(UsageError):
        plan_clips(tiny.config, PROMPTS, count, lengths, size)


def test_unquantized_clips_are_those_of_the_package(tiny, package):
    plan = plan_clips(tiny.config, PROMPTS, 3, (1.0, 2.0), (48, 48))  # three chunks: the ring turns over
    clips = made(package, denoiser(tiny), plan)
    with Pipeline.open(package.path) as pipeline:
        for number, clip in enumerate(plan.clips):
            frames = plan.frames_of(number)
            wanted = np.concatenate(list(pipeline.stream(clip.prompt, seed=clip.seed, frames=frames, size=plan.size)))
            assert clips[number].shape == wanted.shape == (frames, 48, 48, 3)
            apart = np.abs(clips[number].astype(int) - wanted.astype(int))
            assert apart.max() <= 1 and (apart > 0).mean() < 0.01


def test_the_clips_do_not_depend_on_how_many_are_made_at_once(tiny, package, monkeypatch):
    plan = plan_clips(tiny.config, PROMPTS, 3, (1.0,), (48, 48))
    alone = []
    for threads in (1, 3):
        monkeypatch.setattr("rtgen.fidelity.clips.thread_count", lambda count=threads: count)
        alone.append(made(package, denoiser(tiny), plan))
    assert all(np.array_equal(alone[0][number], alone[1][number]) for number in range(3))


def test_an_error_ends_all_threads_and_is_told(tiny, package, monkeypatch):
    monkeypatch.setattr("rtgen.fidelity.clips.thread_count", lambda: 2)
    plan = plan_clips(tiny.config, PROMPTS, 4, (1.0,), (48, 48))

    def take(number, frames):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        make_clips(package, denoiser(tiny), plan, take, lambda fraction: None)
    assert torch.get_num_threads() >= 1


def test_clips_wait_on_the_disk():
    folder = ClipFolder()
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    folder.put("a-0", frames)
    assert np.array_equal(folder.get("a-0"), frames)
    folder.close()


def snr(tiny, package, candidate, reference):
    sizes = {"rows": 3, "columns": 3}
    context = np.random.default_rng(0).standard_normal((1, 12, 16)).astype(np.float32)
    return velocity_snr(candidate(), reference(), package.manifest.model, sizes, context, chunks=2)


def test_passes_tell_equal_from_damaged_denoisers(tiny, package):
    exact = denoiser(tiny)
    assert snr(tiny, package, exact, denoiser(tiny)) is None
    half = snr(tiny, package, denoiser(tiny, "float16"), exact)
    little, much = (snr(tiny, package, denoiser(tiny, damage=share), exact) for share in (0.01, 0.1))
    assert half > 50 and half > little > much > 0
    assert little - much == pytest.approx(20, abs=4)  # ten times the error


def test_a_denoiser_that_breaks_down_has_the_least_there_is(tiny, package):
    assert snr(tiny, package, denoiser(tiny, damage=float("nan")), denoiser(tiny)) == -100.0
