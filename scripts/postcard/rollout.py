"""Generate postcards with the torch models, many streams at once, chunk by chunk as the runtime does.

Every stream of a batch has its own prompt and noise; all are at the same chunk. Nothing waits for the device, so that
a GPU is kept busy by one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.config.model import ModelConfig
from rtgen.models.autoencoder import StreamingDecoder
from rtgen.models.dit import CausalVideoDiT
from rtgen.models.text_encoder import TextEncoder
from rtgen.runtime.kv_cache import RingLayout
from rtgen.runtime.schedule import TRAINING_TIMESTEPS, sigmas
from scripts.postcard.streams import chunk_rotation, even_levels
from scripts.postcard.tokens import build_tokenizer, encode
from scripts.postcard.training import load_weights

DECODED_AT_ONCE = 64
"""Most streams that one run of the decoder takes; bounds the memory."""


class Plan(Protocol):
    """Which noise levels the streams of a batch are denoised at; levels count from 0, in the order of the sampling."""

    def first(self) -> Tensor:
        """The level of the first pass of the next chunk, int64 [B]."""
        ...

    def following(self, level: Tensor, clean: Tensor) -> Tensor:
        """The level of the next pass, int64 [B], or the number of levels where the chunk is finished.

        `level`: that of the pass which gave x0 `clean` [B, C, F, h, w]. Finished streams are asked too, and ignored.
        """
        ...

    def forget(self) -> None:
        """What comes next has nothing to do with the chunks before."""
        ...


class EveryLevel:
    """The plan that leaves nothing out."""

    def __init__(self, batch: int, device: torch.device) -> None:
        self.start = torch.zeros(batch, dtype=torch.int64, device=device)

    def first(self) -> Tensor:
        return self.start

    def following(self, level: Tensor, clean: Tensor) -> Tensor:
        return level + 1

    def forget(self) -> None:
        pass


@dataclass(frozen=True)
class Sampling:
    """How a chunk is denoised."""

    sigmas: tuple[float, ...]
    """Noise levels of the passes, descending, without the clean pass at 0."""
    sampler: Literal["euler", "renoise"] = "euler"
    guidance: float = 1.0
    """Scale w of classifier-free guidance, v = v_empty + w (v - v_empty) with the empty caption; 1 for none."""


def shipped_sampling(config: ModelConfig) -> Sampling:
    """What the model's config says."""
    return Sampling(sigmas(config.schedule.timesteps, config.schedule.shift), config.schedule.sampler)


def even_sampling(config: ModelConfig, steps: int, guidance: float = 1.0) -> Sampling:
    """Euler steps at timesteps evenly spaced before the config's shift warps them."""
    return Sampling(even_levels(steps, config.schedule.shift), "euler", guidance)


@dataclass(frozen=True)
class Parts:
    """The trained models, in evaluation mode on one device. They compute in the type of their weights."""

    config: ModelConfig
    text_encoder: TextEncoder
    denoiser: CausalVideoDiT
    decoder: StreamingDecoder

    @property
    def device(self) -> torch.device:
        return self.denoiser.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.patch_embedding.weight.dtype


def load_parts(
    config: ModelConfig, autoencoder: Path, denoiser: Path, device: torch.device, dtype: torch.dtype = torch.float32
) -> Parts:
    """Read trained weights from folders of the training scripts, or from one that ``pack`` wrote.

    ``autoencoder`` may hold a decoder alone. Raises FileNotFoundError, and RuntimeError for weights of another model.
    """
    text_encoder = TextEncoder(config.text_encoder)
    dit = CausalVideoDiT(config.denoiser, channels=config.autoencoder.latent_channels, text_dim=config.text_encoder.dim)
    decoder = StreamingDecoder(config.autoencoder)
    text_encoder.load_state_dict(load_weights(denoiser, "text_encoder"))
    dit.load_state_dict(load_weights(denoiser, "denoiser"))
    decoder.load_state_dict(decoder_weights(autoencoder))
    for module in (text_encoder, dit, decoder):
        module.to(device, dtype).eval().requires_grad_(False)
    return Parts(config, text_encoder, dit, fast_layout(decoder) if device.type == "cuda" else decoder)


def decoder_weights(folder: Path) -> dict[str, Tensor]:
    """The streaming decoder's weights, alone in the folder or as part of an autoencoder."""
    if any(folder.glob("decoder.*.safetensors")):
        return load_weights(folder, "decoder")
    prefix = "streaming_decoder."
    whole = load_weights(folder, "autoencoder")
    return {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}


def fast_layout(decoder: StreamingDecoder) -> StreamingDecoder:
    """The same decoder with its 3-D kernels stored channels last, as cuDNN's half-precision kernels want them."""
    for value in decoder.parameters():
        if value.ndim == 5:
            value.data = value.data.contiguous(memory_format=torch.channels_last_3d)
    return decoder


class WindowRing:
    """An :class:`rtgen.models.dit.Attend` over the ring of each layer [B, heads, window tokens, head_dim], in place."""

    def __init__(
        self, config: ModelConfig, batch: int, frame_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        cache, denoiser = config.cache, config.denoiser
        self.layout = RingLayout(cache.window, cache.sink, cache.chunk)
        self.frame_tokens = frame_tokens
        shape = (batch, denoiser.heads, cache.window * frame_tokens, denoiser.head_dim)
        self.keys, self.values = (
            [torch.zeros(shape, device=device, dtype=dtype) for _ in range(denoiser.layers)] for _ in range(2)
        )
        self.start = self.length = 0

    def enter(self, written: int) -> None:
        """From now on passes belong to the chunk number ``written`` that the ring is given."""
        self.start = self.layout.slot(written) * self.frame_tokens
        self.length = self.layout.length(written) * self.frame_tokens

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.start : self.start + key.shape[2]] = key
        values[:, :, self.start : self.start + key.shape[2]] = value
        return F.scaled_dot_product_attention(query, keys[:, :, : self.length], values[:, :, : self.length])


class BatchStream:
    """Endless video for each prompt of a batch, chunk by chunk.

    ``passes`` int64 [B] counts the denoise passes that each stream has needed so far (without the clean pass), and
    ``finite`` bool [] says whether every number that was decoded was one; both stay on the device.
    """

    def __init__(
        self,
        parts: Parts,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        seed: int,
        size: tuple[int, int] | None = None,
        plan: Plan | None = None,
    ) -> None:
        config, device = parts.config, parts.device
        self.parts, self.sampling = parts, sampling
        self.plan = plan or EveryLevel(len(prompts), device)
        # Beyond the last level stands the clean pass; finished streams go along there while others are denoised.
        self.levels = torch.tensor([*sampling.sigmas, 0.0], device=device)
        height, width = (pixels // config.autoencoder.spatial_stride for pixels in size or config.resolution.default)
        _, patch_rows, patch_columns = config.denoiser.patch
        self.rows, self.columns = height // patch_rows, width // patch_columns
        self.shape = (len(prompts), config.autoencoder.latent_channels, config.cache.chunk, height, width)
        self.branches = 1 if sampling.guidance == 1.0 else 2
        batch = self.branches * len(prompts)
        self.ring = WindowRing(config, batch, self.rows * self.columns, device, parts.dtype)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.passes = torch.zeros(len(prompts), dtype=torch.int64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.clean_level = torch.zeros(len(prompts), device=device)
        self.chunk = self.written = 0
        self.memory: list[tuple[int, Tensor]] = []
        self.past: list[list[Tensor] | None] = [None] * -(-len(prompts) // DECODED_AT_ONCE)
        self.context = self._encode(prompts)

    @torch.no_grad()
    def next_chunk(self) -> Tensor:
        """The next frames uint8 [B, F, 3, H, W]. Raises ValueError where positions in time would end."""
        self._enter(self.chunk)
        latents = self._denoise()
        self._velocity(latents, self.clean_level)
        self._remember(latents)
        pixels = self._decode(latents)
        self.finite &= torch.isfinite(pixels).all()
        return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 1, 3, 4)

    @torch.no_grad()
    def switch(self, prompts: Sequence[str]) -> None:
        """Other prompts from the next chunk on: the ring is filled again from the latents in the window, by clean
        passes with the new prompts (``rtgen.runtime.denoise.Denoiser.refill``).
        """
        self.context = self._encode(prompts)
        self.plan.forget()
        self.written = 0
        for chunk, latents in self.memory:
            self._enter(chunk)
            self._velocity(latents, self.clean_level)
            self.written += 1

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        """Context [branches * B, tokens, dim], the empty caption's first."""
        texts = [*([""] * len(prompts) if self.branches == 2 else ()), *prompts]
        length = self.parts.config.text_encoder.max_tokens
        return self.parts.text_encoder(*encode(build_tokenizer(), texts, length, self.parts.device))

    def _enter(self, chunk: int) -> None:
        """Aim the ring and the rotary embedding at chunk number ``chunk`` of the stream."""
        config = self.parts.config
        if (chunk + 1) * self.shape[2] > config.cache.position_limit:
            raise ValueError(f"positions in time end at latent frame {config.cache.position_limit}")
        self.ring.enter(self.written)
        self.rotation = chunk_rotation(config, chunk, self.rows, self.columns, self.parts.device)

    def _denoise(self) -> Tensor:
        """Clean latents of the next chunk."""
        last, is_euler = len(self.sampling.sigmas), self.sampling.sampler == "euler"
        # As in the runtime, the noise of a level is the same whichever levels were left out before it.
        fresh = torch.stack([self._noise() for _ in range(1 if is_euler else last)])
        clean, noise, streams = torch.zeros_like(fresh[0]), fresh[0], torch.arange(self.shape[0], device=fresh.device)
        level = self.plan.first().to(clean.device)
        for _ in self.sampling.sigmas:
            sigma, going = self.levels[level].view(-1, 1, 1, 1, 1), level < last
            mixed = (1 - sigma) * clean + sigma * noise
            velocity = self._velocity(mixed, self.levels[level])
            clean = torch.where(going.view(sigma.shape), mixed - sigma * velocity, clean)
            self.passes += going
            level = torch.where(going, self.plan.following(level, clean), last).clamp(max=last)
            noise = mixed + (1 - sigma) * velocity if is_euler else fresh[level.clamp(max=last - 1), streams]
        return clean

    def _noise(self) -> Tensor:
        return torch.randn(self.shape, device=self.parts.device, generator=self.generator)

    def _velocity(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """One pass at noise levels [B], which leaves its keys and values in the ring; guided where sampling says so."""
        latents = latents.repeat(self.branches, 1, 1, 1, 1)
        timestep = (TRAINING_TIMESTEPS * sigma).repeat(self.branches)[:, None].expand(-1, self.shape[2])
        velocity = self.parts.denoiser(latents, timestep, self.context, self.rotation, self.ring)
        if self.branches == 1:
            return velocity
        empty, asked = velocity.chunk(2)
        return torch.lerp(empty, asked, self.sampling.guidance)

    def _remember(self, latents: Tensor) -> None:
        """As ``rtgen.runtime.chunk_memory`` does: all that the next chunk will see, the sink first."""
        cache = self.parts.config.cache
        self.memory.append((self.chunk, latents))
        if len(self.memory) == cache.window // cache.chunk:
            del self.memory[cache.sink // cache.chunk]
        self.chunk += 1
        self.written += 1

    def _decode(self, latents: Tensor) -> Tensor:
        pixels = []
        for index, part in enumerate(latents.chunk(len(self.past))):
            decoded, self.past[index] = self.parts.decoder(part, None, self.past[index])
            pixels.append(decoded)
        return torch.cat(pixels)
