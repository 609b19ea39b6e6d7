"""Streams in batches: the same numbers as the plain sampler gives one by one, with guidance and plans where asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rtgen.config.model import ModelConfig
from rtgen.runtime.noise import chunk_noise
from scripts.postcard import rollout
from scripts.postcard.rollout import BatchStream, Parts, Sampling, shipped_sampling
from scripts.postcard.training import save_weights
from tests.build.reference_sampler import ReferenceSampler

PROMPTS = ("a red kite over the sea", "a blue bird over a lake at night")
OTHERS = ("a green umbrella", "fog in the city")
SIZE = (32, 48)


class SeededStream(BatchStream):
    """Takes the runtime's noise, of seed n for stream n."""

    _at, _step = -1, 0

    def _noise(self) -> Tensor:
        self._step = self._step + 1 if self._at == self.chunk else 0
        self._at = self.chunk
        shape = (1, *self.shape[1:])
        return torch.from_numpy(
            np.concatenate([chunk_noise(seed, self.chunk, self._step, shape) for seed in range(self.shape[0])])
        )


def tiny_parts(tiny, sampler: str = "euler") -> Parts:
    schedule = tiny.config.schedule.model_copy(update={"sampler": sampler})
    config: ModelConfig = tiny.config.model_copy(update={"schedule": schedule})
    modules = tiny.modules()
    return Parts(config, modules["text_encoder"], modules["denoiser"], modules["decoder"])


def video(stream: BatchStream, chunks: int) -> Tensor:
    return torch.cat([stream.next_chunk() for _ in range(chunks)], dim=1)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_a_batch_with_a_switch_equals_plain_sampling(tiny, sampler: str, monkeypatch) -> None:
    monkeypatch.setattr(rollout, "DECODED_AT_ONCE", 1)
    parts = tiny_parts(tiny, sampler)
    stream = SeededStream(parts, PROMPTS, shipped_sampling(parts.config), seed=0, size=SIZE)
    before = video(stream, 5)
    stream.switch(OTHERS)
    made = torch.cat([before, video(stream, 2)], dim=1)
    modules = {"text_encoder": parts.text_encoder, "denoiser": parts.denoiser, "decoder": parts.decoder}
    for seed, frames in enumerate(made):
        reference = ReferenceSampler(modules, parts.config, seed, SIZE)
        expected = reference.frames({0: PROMPTS[seed], 5: OTHERS[seed]}, 7)
        difference = np.abs(frames.permute(0, 2, 3, 1).numpy().astype(int) - expected)
        assert difference.max() <= 1 and difference.mean() < 0.01
    assert stream.passes.tolist() == [14, 14] and bool(stream.finite)


def test_guidance_moves_away_from_the_empty_caption(tiny) -> None:
    parts = tiny_parts(tiny)

    def first_latents(prompt: str, guidance: float) -> Tensor:
        stream = BatchStream(parts, [prompt], Sampling((1.0,), guidance=guidance), seed=3, size=SIZE)
        stream.next_chunk()
        return stream.memory[0][1]

    asked, empty = (first_latents(prompt, 1.0) for prompt in (PROMPTS[0], ""))
    assert (asked - empty).abs().max() > 0.05
    guided = first_latents(PROMPTS[0], 3.0)
    assert (guided - (empty + 3 * (asked - empty))).abs().max() < 1e-4


class Shortcut:
    """Stream 0 skips the middle level, stream 1 ends after the first pass."""

    def first(self) -> Tensor:
        return torch.zeros(2, dtype=torch.int64)

    def following(self, level: Tensor, clean: Tensor) -> Tensor:
        return torch.where(torch.tensor([True, False]), level + 2, 3)

    def forget(self) -> None:
        pass


def test_a_plan_may_leave_passes_out_for_each_stream_alone(tiny) -> None:
    parts = tiny_parts(tiny)
    stream = SeededStream(parts, PROMPTS, Sampling((1.0, 0.7, 0.4)), seed=0, size=SIZE, plan=Shortcut())
    stream.next_chunk()
    assert stream.passes.tolist() == [2, 1]
    for number, levels in enumerate([(1.0, 0.4), (1.0,)]):
        alone = SeededStream(parts, PROMPTS, Sampling(levels), seed=0, size=SIZE)
        alone.next_chunk()
        assert (alone.memory[0][1][number] - stream.memory[0][1][number]).abs().max() < 1e-4


def test_what_is_no_number_is_noticed(tiny) -> None:
    parts = tiny_parts(tiny)
    stream = BatchStream(parts, PROMPTS, Sampling((1.0,)), seed=0, size=SIZE)
    stream.context[1] = torch.nan
    stream.next_chunk()
    assert not stream.finite


def test_positions_in_time_end_with_an_error(tiny) -> None:
    parts = tiny_parts(tiny)
    cache = parts.config.cache.model_copy(update={"position_limit": 9})
    parts = Parts(parts.config.model_copy(update={"cache": cache}), parts.text_encoder, parts.denoiser, parts.decoder)
    stream = BatchStream(parts, PROMPTS, Sampling((1.0,)), seed=0, size=SIZE)
    video(stream, 3)
    with pytest.raises(ValueError, match="end at latent frame 9"):
        stream.next_chunk()


def test_weights_load_from_what_ships_and_from_a_whole_autoencoder(tiny, tmp_path) -> None:
    shipped = rollout.load_parts(tiny.config, tiny.weights, tiny.weights, torch.device("cpu"))
    own = dict(shipped.decoder.named_parameters())
    whole = {f"streaming_decoder.{name}": value for name, value in own.items()} | {"encoder.x": torch.ones(1)}
    save_weights(tmp_path, "autoencoder", whole)
    trained = rollout.load_parts(tiny.config, tmp_path, tiny.weights, torch.device("cpu"))
    assert all(torch.equal(value, own[name]) for name, value in trained.decoder.named_parameters())
    assert torch.equal(video(BatchStream(shipped, PROMPTS, Sampling((1.0,)), seed=1, size=SIZE), 1),
                       video(BatchStream(trained, PROMPTS, Sampling((1.0,)), seed=1, size=SIZE), 1))  # fmt: skip
    with pytest.raises(FileNotFoundError, match="text_encoder"):
        rollout.load_parts(tiny.config, tiny.weights, tmp_path / "none", torch.device("cpu"))
