"""The stream of a package once more: plain torch, no ring, no session, the decoder on the whole clip at once."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rtgen.config.model import ModelConfig
from rtgen.runtime.noise import chunk_noise
from scripts.postcard.tokens import build_tokenizer, encode
from tests.models.attention import HistoryAttend, rotation, visible_chunks

Memory = dict[int, list[tuple[Tensor, Tensor]]]


class ReferenceSampler:
    """Latents of chunk after chunk; ``prompts`` names the chunk from which each prompt holds."""

    def __init__(self, modules: dict[str, nn.Module], config: ModelConfig, seed: int, size: tuple[int, int]) -> None:
        self.modules, self.config, self.seed = modules, config, seed
        self.rows, self.columns = (side // step for side, step in zip(size, config.size_step, strict=True))
        stride = config.autoencoder.spatial_stride
        channels, self.chunk = config.autoencoder.latent_channels, config.cache.chunk
        self.shape = (1, channels, self.chunk, size[0] // stride, size[1] // stride)
        self.places: dict[int, int] = {}  # of each chunk in time, in latent frames
        self.window, self.sink = config.cache.window // self.chunk, config.cache.sink // self.chunk

    @torch.no_grad()
    def frames(self, prompts: dict[int, str], chunks: int) -> NDArray[np.uint8]:
        """All frames [F, H, W, 3]."""
        return self.pixels(torch.cat(self.latents(prompts, chunks), dim=2))

    @torch.no_grad()
    def latents(self, prompts: dict[int, str], chunks: int, refill_at: tuple[int, ...] = ()) -> list[Tensor]:
        """The latents of each chunk. Before the chunks of ``refill_at`` what is remembered is encoded again, as is."""
        latents: dict[int, Tensor] = {}
        memory: Memory = {}
        for chunk in range(chunks):
            earlier = visible_chunks(chunk, window=self.window, sink=self.sink)[:-1]
            self.places[chunk] = self.places[chunk - 1] + self.chunk if chunk else 0
            ends = self.places[chunk] + self.chunk > self.config.cache.position_limit
            if ends:
                self.places |= {other: index * self.chunk for index, other in enumerate([*earlier, chunk])}
            if chunk in prompts:
                context = self._context(prompts[chunk])
            if chunk in prompts or ends or chunk in refill_at:
                memory = {}
                for other in earlier:
                    self._commit(other, latents[other], context, memory, list(memory))
            latents[chunk] = self._sample(chunk, context, [memory[other] for other in earlier])
            self._commit(chunk, latents[chunk], context, memory, earlier)
        return [latents[chunk] for chunk in range(chunks)]

    def _context(self, prompt: str) -> Tensor:
        length = self.config.text_encoder.max_tokens
        return self.modules["text_encoder"](*encode(build_tokenizer(), [prompt], length, torch.device("cpu")))

    def _velocity(self, chunk: int, x: Tensor, sigma: float, context: Tensor, attend: HistoryAttend) -> Tensor:
        places = torch.arange(self.places[chunk], self.places[chunk] + self.chunk)
        turn = rotation(self.config.denoiser, places, self.rows, self.columns)
        return self.modules["denoiser"](x, torch.full((1, self.chunk), 1000 * sigma), context, turn, attend)

    def _sample(self, chunk: int, context: Tensor, earlier: list[list[tuple[Tensor, Tensor]]]) -> Tensor:
        schedule = self.config.schedule
        sigmas = [step / 1000 for step in schedule.timesteps]
        sigmas = [schedule.shift * sigma / (1 + (schedule.shift - 1) * sigma) for sigma in sigmas]
        x = self._noise(chunk, 0)
        for step, (sigma, following) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
            velocity = self._velocity(chunk, x, sigma, context, HistoryAttend(earlier))
            if schedule.sampler == "euler" or following == 0:
                x = x + (following - sigma) * velocity
            else:
                x = (1 - following) * (x - sigma * velocity) + following * self._noise(chunk, step + 1)
        return x

    def _noise(self, chunk: int, step: int) -> Tensor:
        return torch.from_numpy(chunk_noise(self.seed, chunk, step, self.shape))

    def _commit(self, chunk: int, latents: Tensor, context: Tensor, memory: Memory, earlier: list[int]) -> None:
        attend = HistoryAttend([memory[other] for other in earlier])
        self._velocity(chunk, latents, 0.0, context, attend)
        memory[chunk] = attend.own

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> NDArray[np.uint8]:
        """The frames of a whole clip, [F, H, W, 3]."""
        if self.config.decoder == "taehv":
            pixels = 2 * self.modules["decoder"](latents)[0] - 1
        else:
            pixels, _ = self.modules["decoder"](latents, torch.ones(1))
        pixels = pixels[:, :, self.config.dropped_frames :]
        levels = ((pixels[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255)
        return levels.to(torch.uint8).numpy()
