"""Generate postcards with the torch models, many at once, as the runtime would: chunk by chunk through a K/V window.

python -m scripts.postcard.rollout --autoencoder runs/autoencoder --denoiser runs/denoiser --out sheet.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.config.model import ModelConfig
from rtgen.models.autoencoder import Autoencoder
from rtgen.models.dit import CausalVideoDiT
from rtgen.models.rope import axis_table, token_rotation
from rtgen.models.text_encoder import TextEncoder
from rtgen.runtime.schedule import sigmas
from scripts.postcard.contact_sheet import tile, write_png
from scripts.postcard.grammar import canonical_caption, held_out_scenes
from scripts.postcard.tokens import build_tokenizer, encode
from scripts.postcard.train_autoencoder import load_autoencoder
from scripts.postcard.training import load_weights, postcard_config


class WindowAttention:
    """Keys and values of the last chunks; ``commit`` keeps those of the pass that just ran."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.past: list[dict[int, tuple[Tensor, Tensor]]] = []
        self.present: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.present[layer] = (key, value)
        seen = [*(past[layer] for past in self.past), (key, value)]
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*seen, strict=True))
        return F.scaled_dot_product_attention(query, keys, values)

    def commit(self) -> None:
        self.past = [*self.past, self.present][-(self.chunks - 1) :]
        self.present = {}


@torch.no_grad()
def generate(
    config: ModelConfig,
    parts: tuple[TextEncoder, CausalVideoDiT, Autoencoder],
    prompts: Sequence[str],
    *,
    chunks: int,
    levels: Sequence[float],
    sampler: str,
    seed: int,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Video [B, 4 * 3 * chunks, 3, H, W] uint8 for each prompt at noise levels ``levels`` (descending, without 0)."""
    text_encoder, denoiser, autoencoder = parts
    device = next(denoiser.parameters()).device
    ids, mask = encode(build_tokenizer(), prompts, config.text_encoder.max_tokens, device)
    context = text_encoder(ids, mask)
    height, width = (pixels // config.autoencoder.spatial_stride for pixels in size or config.resolution.default)
    frames, generator = config.cache.chunk, torch.Generator(device).manual_seed(seed)
    shape = (len(prompts), config.autoencoder.latent_channels, frames, height, width)
    attend, states, video = WindowAttention(config.cache.window // frames), None, []
    for chunk in range(chunks):
        rotation = chunk_rotation(config, chunk, height // 2, width // 2, device)
        clean, noise = torch.zeros(shape, device=device), torch.randn(shape, device=device, generator=generator)
        for sigma in (*levels, 0.0):
            latents = (1 - sigma) * clean + sigma * noise
            timestep = torch.full((len(prompts), frames), 1000 * sigma, device=device)
            velocity = denoiser(latents, timestep, context, rotation, attend)
            clean = latents - sigma * velocity
            noise = latents + (1 - sigma) * velocity
            if sampler == "renoise":
                noise = torch.randn(shape, device=device, generator=generator)
        attend.commit()
        pixels, states = autoencoder.streaming_decoder(clean, None, states)
        video.append(((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 1, 3, 4))
    return torch.cat(video, dim=1)


def chunk_rotation(config: ModelConfig, chunk: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Rotary tables of one chunk of the stream."""
    frames, theta = config.cache.chunk, config.denoiser.rope_theta
    counts = (torch.arange(chunk * frames, (chunk + 1) * frames), torch.arange(rows), torch.arange(columns))
    time, height, width = (
        axis_table(positions.to(device), channels, theta)
        for positions, channels in zip(counts, config.denoiser.rope_split, strict=True)
    )
    return token_rotation((time, height, width))


def load_parts(
    autoencoder: Path, denoiser: Path, device: torch.device
) -> tuple[TextEncoder, CausalVideoDiT, Autoencoder]:
    """The trained models in evaluation mode."""
    config = postcard_config()
    text = TextEncoder(config.text_encoder)
    text.load_state_dict(load_weights(denoiser, "text_encoder"))
    dit = CausalVideoDiT(config.denoiser, channels=config.autoencoder.latent_channels, text_dim=config.text_encoder.dim)
    dit.load_state_dict(load_weights(denoiser, "denoiser"))
    return text.to(device).eval(), dit.to(device).eval(), load_autoencoder(autoencoder, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--denoiser", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=7)
    parser.add_argument("--steps", type=int, help="evenly spaced steps instead of the configured few")
    parser.add_argument("--sampler", choices=("euler", "renoise"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = postcard_config()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompts = [canonical_caption(scene) for scene in held_out_scenes(arguments.count, seed=5)]
    timesteps = config.schedule.timesteps
    if arguments.steps:
        timesteps = tuple(1000 * (1 - index / arguments.steps) for index in range(arguments.steps))
    video = generate(
        config,
        load_parts(arguments.autoencoder, arguments.denoiser, device),
        prompts,
        chunks=arguments.chunks,
        levels=sigmas(timesteps, config.schedule.shift),
        sampler=arguments.sampler or config.schedule.sampler,
        seed=arguments.seed,
    )
    times = torch.linspace(0, video.shape[1] - 1, 6).long()
    write_png(arguments.out, tile(video[:, times].flatten(0, 1).cpu(), 12))
    for index, prompt in enumerate(prompts):
        print(index, prompt)


if __name__ == "__main__":
    main()
