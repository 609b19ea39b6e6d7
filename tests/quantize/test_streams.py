"""Recorded streams are those that the runtime makes, and replaying them gives what was recorded."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtgen.config.recipe import KVCacheFormat
from rtgen.engine.package import open_package
from rtgen.models.kv_ring import CodedKVRing, CodedRingSettings
from rtgen.quantize.calibration_set import CalibrationSet
from rtgen.quantize.contexts import encode_prompts
from rtgen.quantize.replay import Replay
from rtgen.quantize.replayed_ring import RingOfCodes, empty_ring, visible_chunks
from rtgen.runtime.backends import open_backend
from rtgen.runtime.denoise import Denoiser
from rtgen.runtime.kv_cache import RingLayout
from rtgen.runtime.text import PromptEncoder


def test_streams_are_those_of_the_package(recorded, tiny_built):
    package = open_package(tiny_built("tiny").package)
    backend = open_backend(package)
    encoder, session = PromptEncoder(package, backend, remember=False), backend.open("denoiser")
    assert [stream.prompt for stream in recorded.set.streams] == list(recorded.contexts)
    for seed, stream in enumerate(recorded.set.streams):
        context = encoder.context(encoder.tokens(stream.prompt))
        np.testing.assert_allclose(stream.context.numpy(), context, atol=2e-5)
        denoiser = Denoiser(session, recorded.entry, {"rows": 3, "columns": 3}, seed)
        denoiser.set_context(context)
        for chunk, latents in enumerate(stream.clean):
            denoiser.generate(chunk, chunk * recorded.entry.chunk)
            np.testing.assert_allclose(latents.numpy(), session.read("denoised")[0], atol=1e-3)
    backend.close()


def test_a_set_comes_back_from_its_files(recorded, tmp_path):
    recorded.set.write(tmp_path)
    back = CalibrationSet.read(tmp_path)
    assert (back.sigmas, back.chunks, back.passes) == (recorded.set.sigmas, (0, 1, 4), 2 * 3 * 3)
    for ours, theirs in zip(recorded.set.streams, back.streams, strict=True):
        assert ours.prompt == theirs.prompt
        assert all(torch.equal(getattr(ours, part), getattr(theirs, part)) for part in ("context", "clean", "noisy"))


def test_replaying_the_last_denoise_pass_gives_the_chunk_that_was_made(recorded):
    replay = Replay(recorded.config, recorded.set, recorded.layered.shell, recorded.device)
    for layer in range(recorded.config.denoiser.layers):
        replay.run(recorded.layered.block(layer))
    compared = 0
    for passes, velocity in replay.velocities(recorded.layered.shell):
        if passes.is_recorded:
            stream = recorded.set.streams[passes.stream]
            latents = stream.noisy[recorded.set.chunks.index(passes.chunk)][-1]
            made = latents - recorded.set.sigmas[-1] * velocity[-2]  # the last pass is the clean one
            torch.testing.assert_close(made, stream.clean[passes.chunk], atol=2e-5, rtol=0)
            compared += 1
    assert compared == 2 * 3


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_replayed_passes_see_the_ring_of_codes_that_a_stream_has(recorded, keep):
    config, sizes = recorded.config, {"rows": 2, "columns": 3}
    ring = KVCacheFormat(bits=4, keep=keep, recent=0.2)
    layout, frame = RingLayout(config.cache.window, config.cache.sink, config.cache.chunk), 6
    replayed = RingOfCodes(config, ring, layout, sizes, recorded.device)
    states = [[tensors[0]] for tensors in empty_ring(config, ring, sizes, recorded.device)]
    torch.manual_seed(3)
    for chunk in range(7):
        # Three passes of a chunk one after the other, and the same as a batch, twice as when a layer is measured.
        query, key, value = torch.randn(3, 3, config.denoiser.heads, 3 * frame, config.denoiser.head_dim)
        place = [torch.tensor([n * frame]) for n in (layout.slot(chunk), layout.length(chunk), 1)]
        expected = []
        for one in range(3):
            live = CodedKVRing(CodedRingSettings.of(config, ring), *states, *place)
            expected.append(live(0, *(tensor[one : one + 1] for tensor in (query, key, value))))
            states = live.states
        attention = replayed.attention(chunk)
        for _ in range(2):
            attend = attention()
            assert torch.equal(attend(0, query, key, value), torch.cat(expected))
        replayed.keep(chunk, attend.own)
        assert all(torch.equal(ours, theirs[0]) for ours, theirs in zip(attend.own, states, strict=True))


def test_prompts_are_encoded_alike_alone_and_beside_longer_ones(recorded):
    alone = encode_prompts(recorded.config, recorded.tiny.weights, ["a kite"], recorded.device, warn=pytest.fail)
    torch.testing.assert_close(alone["a kite"], recorded.contexts["a kite"], atol=1e-5, rtol=0)


def test_what_is_lost_of_a_prompt_is_told(recorded):
    told = []
    encode_prompts(recorded.config, recorded.tiny.weights, ["a quokka"], recorded.device, warn=told.append)
    assert len(told) == 1 and "quokka" in told[0]


@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 3), st.integers(0, 40))
def test_visible_are_the_sink_and_the_latest_chunks(chunk, turns, sink, number):
    layout = RingLayout(window=(sink + turns) * chunk, sink=sink * chunk, chunk=chunk)
    expected = [*range(min(sink, number)), *range(max(sink, number - turns + 1), number)]
    assert list(visible_chunks(layout, number)) == expected
