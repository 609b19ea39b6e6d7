"""Train the text encoder and the causal denoiser together on latents of rendered clips.

    python -m scripts.postcard.train_denoiser --autoencoder runs/autoencoder --out runs/denoiser --minutes 25

Rectified flow with teacher forcing: one pass over the clip's clean latents followed by noisy copies, where noisy
chunk i sees clean chunks i-3 .. i-1 and itself, exactly as it will through the K/V ring. Each chunk has its own noise
level; the clean copies are slightly noised while the model is told they are clean, and later in training some of them
are what the model itself makes of a noisy copy (self-resampling), so that its own errors do not accumulate in long
streams. Some clips begin with another scene's chunks, so that a prompt can be switched. Cells that the subject covers
weigh more, as does the first chunk, which has no past to go by. One caption in ten is empty, for guidance.
``--resume`` continues from saved weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from rtgen.config.model import ModelConfig
from rtgen.models.dit import CausalVideoDiT
from rtgen.models.rope import axis_table, token_rotation
from rtgen.models.text_encoder import TextEncoder
from scripts.postcard.data import RENDERED_AT_ONCE, ClipSource, Item, Pool, latent_items
from scripts.postcard.distributed import Group, join
from scripts.postcard.tokens import build_tokenizer
from scripts.postcard.train_autoencoder import load_autoencoder
from scripts.postcard.training import (
    AveragedWeights,
    Clock,
    Log,
    learning_rate_factor,
    load_weights,
    optimizers,
    postcard_config,
    save_weights,
    set_rate,
)

FRAMES = 84
"""Of a training clip: 21 latent frames, 7 chunks."""
FIRST_CLIPS = 512
"""Clips that a training begins with; the pool fills while it goes on."""
SUBJECT_WEIGHT = 4.0
FIRST_CHUNK_WEIGHT = 2.0
CONTEXT_NOISE = 0.15
"""Most noise on the clean copies, drawn uniformly per chunk."""
UNCONDITIONAL = 0.1
"""Share of clips without a caption."""
SPLICED = 0.25
"""Share of clips whose first chunks are another scene's, under the caption of what follows: a switched prompt."""
RESAMPLED_FROM, RESAMPLED_EVERY = 0.35, 2
"""Part of the training after which every second batch has some chunks of history that the model made itself."""


class TeacherForcing:
    """Attention over [clean | noisy] copies of ``chunks`` chunks, each chunk reaching ``window`` chunks with its own.

    Block-sparse: chunks that a query cannot see cost nothing, and no window is ever gathered.
    """

    def __init__(self, chunks: int, chunk_tokens: int, window: int, device: torch.device) -> None:
        tokens = chunks * chunk_tokens

        def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            at, of = query % tokens // chunk_tokens, key % tokens // chunk_tokens
            is_past = (key < tokens) & (of < at) & (of > at - window)
            return is_past | ((query // tokens == key // tokens) & (of == at))

        shape = (2 * tokens, 2 * tokens)
        self.blocks = create_block_mask(visible, None, None, *shape, device=device)
        self.fused = torch.compile(flex_attention)
        # On processors, block-sparse attention has no gradients.
        self.mask = None if device.type == "cuda" else create_mask(visible, None, None, *shape, device=device)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.mask is not None:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        attended = self.fused(query.to(value.dtype), key.to(value.dtype), value, block_mask=self.blocks)
        assert isinstance(attended, Tensor)
        return attended


class Generator(nn.Module):
    """The two trained parts and one training pass through them."""

    def __init__(self, config: ModelConfig, rows: int, columns: int, frames: int, device: torch.device) -> None:
        super().__init__()
        self.text_encoder = TextEncoder(config.text_encoder)
        self.denoiser = CausalVideoDiT(
            config.denoiser, channels=config.autoencoder.latent_channels, text_dim=config.text_encoder.dim
        )
        chunk = config.cache.chunk
        self.attend = TeacherForcing(frames // chunk, chunk * rows * columns, config.cache.window // chunk, device)
        time, height, width = config.denoiser.rope_split
        theta = config.denoiser.rope_theta
        self.rotation = token_rotation(
            (
                axis_table(torch.arange(frames, device=device).repeat(2), time, theta),
                axis_table(torch.arange(rows, device=device), height, theta),
                axis_table(torch.arange(columns, device=device), width, theta),
            )
        )

    def forward(self, clean: Tensor, noisy: Tensor, sigma: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Velocity [B, C, F, h, w] of ``noisy`` at noise level ``sigma`` [B, F], given slightly noised ``clean``."""
        context = self.text_encoder(ids, mask)
        timestep = torch.cat([torch.zeros_like(sigma), 1000 * sigma], dim=1)
        velocity = self.denoiser(torch.cat([clean, noisy], dim=2), timestep, context, self.rotation, self.attend)
        return velocity[:, :, clean.shape[2] :]


def draw_sigma(batch: int, chunks: int, shift: float, device: torch.device) -> Tensor:
    """Noise levels [B, chunks]: logit-normal mixed with uniform, then warped as the sampler warps its steps."""
    normal = torch.sigmoid(torch.randn(batch, chunks, device=device))
    uniform = torch.rand(batch, chunks, device=device)
    sigma = torch.where(torch.rand(batch, chunks, device=device) < 0.5, normal, uniform)
    return shift * sigma / (1 + (shift - 1) * sigma)


def drop_captions(item: Item) -> tuple[Tensor, Tensor]:
    """Token ids and mask with some captions emptied."""
    kept = (torch.rand(len(item["ids"]), 1, device=item["ids"].device) >= UNCONDITIONAL).long()
    return item["ids"] * kept, item["mask"] * kept


def noised(clean: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Latents [B, C, F, h, w] at noise levels [B, F]."""
    wide = level[:, None, :, None, None]
    return (1 - wide) * clean + wide * noise


def per_chunk(values: Tensor, chunk: int) -> Tensor:
    """[B, chunks] to [B, F]."""
    return values.repeat_interleave(chunk, dim=1)


def resampled(model: Callable[..., Tensor], clean: Tensor, chunk: int, ids: Tensor, mask: Tensor) -> Tensor:
    """``clean`` with about half of its chunks replaced by what the model makes of them from up to 0.7 of noise.

    Nothing is learnt here; gradients stay enabled so that the one compiled graph serves.
    """
    shape = (len(clean), clean.shape[2] // chunk)
    sigma = per_chunk(0.05 + 0.65 * torch.rand(shape, device=clean.device), chunk)
    noisy = noised(clean, sigma, torch.randn_like(clean))
    made = noisy - sigma[:, None, :, None, None] * model(clean, noisy, sigma, ids, mask).detach().float()
    chosen = per_chunk((torch.rand(shape, device=clean.device) < 0.5).float(), chunk)[:, None, :, None, None]
    return torch.lerp(clean, made, chosen)


def splice(clean: Tensor, weight: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Some clips with the first chunks of their neighbour, which weigh nothing: what comes before a prompt is switched.

    Latents [B, C, F, h, w] and weights [B, 1, F, h, w].
    """
    batch, frames = len(clean), clean.shape[2]
    chosen = torch.rand(batch, 1, device=clean.device) < SPLICED
    cut = torch.randint(1, max(2, frames // chunk), (batch, 1), device=clean.device) * chunk
    foreign = (chosen & (torch.arange(frames, device=clean.device) < cut))[:, None, :, None, None]
    return torch.where(foreign, clean.roll(1, 0), clean), weight.masked_fill(foreign, 0.0)


def flow_loss(model: Callable[..., Tensor], item: Item, config: ModelConfig, *, resample: bool) -> Tensor:
    """Weighted squared error of the velocity."""
    chunk = config.cache.chunk
    weight = 1 + SUBJECT_WEIGHT * item["weight"].float().unsqueeze(1)
    weight[:, :, :chunk] *= FIRST_CHUNK_WEIGHT
    clean, weight = splice(item["latents"].float(), weight, chunk)
    ids, mask = drop_captions(item)
    shape = (len(clean), clean.shape[2] // chunk)
    sigma = per_chunk(draw_sigma(*shape, config.schedule.shift, clean.device), chunk)
    history = resampled(model, clean, chunk, ids, mask) if resample else clean
    level = per_chunk(CONTEXT_NOISE * torch.rand(shape, device=clean.device), chunk)
    context = noised(history, level, torch.randn_like(clean))
    noise = torch.randn_like(clean)
    velocity = model(context, noised(clean, sigma, noise), sigma, ids, mask)
    return ((velocity - (noise - clean)).square() * weight).sum() / (weight.sum() * clean.shape[1])


def make_pool(config: ModelConfig, autoencoder: Path, capacity: int, seed: int, device: torch.device) -> Pool:
    """Latents of rendered clips at the model's default size."""
    model = load_autoencoder(autoencoder, device)

    def encode_pixels(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model.encode(pixels)[0].float()

    source = ClipSource(RENDERED_AT_ONCE, FRAMES, config.resolution.default, seed, device)
    make = latent_items(source, encode_pixels, build_tokenizer(), config.text_encoder.max_tokens)
    return Pool(capacity, make, source.batch, first=min(capacity, FIRST_CLIPS))


def make_generator(config: ModelConfig, device: torch.device, frames: int = FRAMES) -> Generator:
    """Untrained parts for clips of ``frames`` at the model's default size."""
    stride = config.autoencoder.spatial_stride
    rows, columns = (pixels // stride // 2 for pixels in config.resolution.default)
    return Generator(config, rows, columns, frames // config.autoencoder.temporal_stride, device).to(device)


def train(arguments: argparse.Namespace, group: Group) -> None:
    torch.set_float32_matmul_precision("high")
    device, seed = group.device, arguments.seed + 1009 * group.rank
    torch.manual_seed(arguments.seed)
    config = postcard_config()
    model = make_generator(config, device)
    parts = {"denoiser": model.denoiser, "text_encoder": model.text_encoder}
    if arguments.resume:
        for name, part in parts.items():
            part.load_state_dict(load_weights(arguments.resume, name))
    group.same(parts.values())
    torch.manual_seed(seed)
    clock, log = Clock(arguments.minutes, arguments.resumed), Log(arguments.out / "log.jsonl")
    pool = make_pool(config, arguments.autoencoder, arguments.pool, seed, device)
    averaged = AveragedWeights(parts, decay=0.9995)
    found = optimizers(parts.values(), rate=arguments.rate, weight_decay=0.01)
    compiled = torch.compile(model) if arguments.compile else model
    step, saved, total, fraction = 0, 0.0, torch.zeros((), device=device), arguments.resumed
    while fraction < 1:
        if step % 10 == 0:
            fraction = group.agree(clock.fraction)
        factor = learning_rate_factor(step, fraction, warmup_steps=300, decay_from=0.5)
        set_rate(found, arguments.rate * factor)
        if step % arguments.refresh_every == 0:
            pool.refresh()
        resample = fraction >= RESAMPLED_FROM and step % RESAMPLED_EVERY == 0
        with torch.autocast(device.type, torch.bfloat16):
            loss = flow_loss(compiled, pool.draw(arguments.batch), config, resample=resample)
        for optimizer in found:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        group.average(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in found:
            optimizer.step()
        averaged.update(step)
        total += loss.detach()
        step += 1
        if group.is_first and step % 100 == 0:
            log.write(
                step=step,
                seconds=clock.elapsed,
                loss=float(total) / 100,
                rate_factor=factor,
                clips=pool.made * pool.batch,
            )
            total.zero_()
        if group.is_first and clock.elapsed - saved > 60:
            saved = clock.elapsed
            save_all(arguments.out, averaged)
    if group.is_first:
        save_all(arguments.out, averaged)


def save_all(out: Path, averaged: AveragedWeights) -> None:
    for name in ("denoiser", "text_encoder"):
        save_weights(out, name, averaged.part(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of the trained autoencoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="folder of saved weights to continue from")
    parser.add_argument("--resumed", type=float, default=0.0, help="fraction of the schedule already done")
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--batch", type=int, default=48, help="clips a step and GPU")
    parser.add_argument("--pool", type=int, default=2048, help="clips kept on the device")
    parser.add_argument("--refresh-every", type=int, default=32, help="steps between new batches of 64 clips")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args(), join())


if __name__ == "__main__":
    main()
