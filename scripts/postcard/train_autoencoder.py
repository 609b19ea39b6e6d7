"""Train the autoencoder on rendered clips.

    python -m scripts.postcard.train_autoencoder --out runs/autoencoder --minutes 9

Losses: absolute error, absolute error of neighbouring differences in space and time (edges and motion of small
things), and a weak Kullback-Leibler term. The decoder also sees slightly noised latents, since a denoiser's are
never exact. At the end the per-channel mean and deviation of the latents are folded into the 1x1x1 convolutions next to
them, so that shipped latents are normalised.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.models.autoencoder import Autoencoder
from scripts.postcard.data import ClipSource, Pool, to_signed
from scripts.postcard.grammar import held_out_scenes, random_scene
from scripts.postcard.render import render_indices
from scripts.postcard.training import (
    AveragedWeights,
    Clock,
    Log,
    learning_rate_factor,
    load_weights,
    postcard_config,
    save_weights,
    set_rate,
)

SIZES = (*((128, 128),) * 9, (96, 160), (160, 96), (192, 192))
"""Drawn in turn; the pixels of a batch are held about constant. Only the first is compiled."""
FRAMES = 20


def pixels_of(indices: Tensor, size: tuple[int, int], frames: int, seed: int) -> Tensor:
    """Rendered clips as [B, 3, F, H, W] float32 in -1..1."""
    height, width = size
    return to_signed(
        render_indices(indices, frames=frames, height=height, width=width, seed=seed, device=indices.device)
    )


def random_indices(count: int, rng: random.Random, device: torch.device) -> Tensor:
    """Attribute indices [count, 7] of the training split."""
    return torch.tensor([random_scene(rng).indices() for _ in range(count)], device=device)


def difference_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of neighbouring differences along frames, rows and columns."""
    error = output - target
    parts = [(error.narrow(axis, 1, error.shape[axis] - 1) - error.narrow(axis, 0, error.shape[axis] - 1)).abs().mean()
             for axis in (2, 3, 4)]  # fmt: skip
    return torch.stack(parts).sum()


class Halves(NamedTuple):
    """The encoder and decoder as functions, compiled or not."""

    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[Tensor], tuple[Tensor, list[Tensor]]]


def reconstruct(model: Halves, pixels: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Decoded pixels and the Kullback-Leibler term; ``noise`` is relative to each channel's deviation."""
    mean, log_variance = model.encode(pixels)
    mean, log_variance = mean.float(), log_variance.float().clamp(-20, 10)
    latents = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
    level = noise * torch.rand(len(mean), 1, 1, 1, 1, device=mean.device)
    deviation = mean.detach().std(dim=(0, 2, 3, 4), keepdim=True)
    decoded, _ = model.decode(latents + level * deviation * torch.randn_like(latents))
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return decoded.float(), divergence


@torch.no_grad()
def evaluate(model: Autoencoder, device: torch.device, size: tuple[int, int] = (128, 128)) -> float:
    """Mean PSNR in dB over 32 held-out clips of 20 frames, 8-bit range."""
    indices = torch.tensor([scene.indices() for scene in held_out_scenes(32, seed=7)], device=device)
    values = []
    for start in range(0, 32, 8):
        pixels = pixels_of(indices[start : start + 8], size, FRAMES, seed=10_000 + start)
        decoded, _ = model.streaming_decoder(model.encode(pixels)[0])
        error = (decoded.clamp(-1, 1) - pixels).square().mean(dim=(1, 2, 3, 4)) / 4
        values.append(-10 * torch.log10(error))
    return float(torch.cat(values).mean())


@torch.no_grad()
def fold_statistics(model: Autoencoder, device: torch.device) -> None:
    """Make encoded latents zero-mean and unit-deviation per channel without changing what is decoded."""
    rng = random.Random(123)
    latents = [
        model.encode(pixels_of(random_indices(16, rng, device), (128, 128), FRAMES, seed=i))[0] for i in range(8)
    ]
    stacked = torch.cat(latents)
    mean, std = stacked.mean(dim=(0, 2, 3, 4)), stacked.std(dim=(0, 2, 3, 4))
    channels = len(mean)
    encode, decode = model.conv1, model.streaming_decoder.conv2
    assert encode.bias is not None and decode.bias is not None
    decode.bias += (decode.weight.flatten(1) * mean).sum(1)
    decode.weight *= std[None, :, None, None, None]
    encode.bias[:channels] = (encode.bias[:channels] - mean) / std
    encode.weight[:channels] /= std[:, None, None, None, None]


def prepare(resume: Path | None, device: torch.device, *, compiling: bool) -> tuple[Autoencoder, Halves, Halves]:
    """The model to train, as it is and compiled."""
    model = Autoencoder(postcard_config().autoencoder)
    if resume:
        model.load_state_dict(load_weights(resume, "autoencoder"), strict=False)
    model = model.to(device)
    for parameter in model.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    eager = Halves(model.encode, model.streaming_decoder)
    compiled = Halves(torch.compile(model.encode), torch.compile(model.streaming_decoder)) if compiling else eager
    return model, eager, compiled


def train(out: Path, minutes: float, batch: int, seed: int, resume: Path | None, compiling: bool) -> None:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    model, eager, compiled = prepare(resume, device, compiling=compiling)
    averaged = AveragedWeights({"autoencoder": model}, decay=0.999)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    clock, log, rng = Clock(minutes), Log(out / "log.jsonl"), random.Random(seed)
    pools = {size: Pool(192, ClipSource(16, 3 * FRAMES, size, seed, device).pixels, 16) for size in set(SIZES)}
    step, saved = 0, 0.0
    while not clock.over:
        size = SIZES[step % len(SIZES)]
        count = max(1, batch * 128 * 128 // (size[0] * size[1]))
        if step % 8 == 0:
            pools[size].refresh()
        start = rng.randrange(2 * FRAMES + 1)
        pixels = to_signed(pools[size].draw(count)["pixels"][:, start : start + FRAMES]).contiguous(
            memory_format=torch.channels_last_3d
        )
        set_rate([optimizer], 1e-3 * learning_rate_factor(step, clock.fraction, warmup_steps=200))
        with torch.autocast(device.type, torch.bfloat16):
            decoded, divergence = reconstruct(compiled if size == SIZES[0] else eager, pixels, noise=0.1)
        error = decoded - pixels
        loss = (
            error.abs().mean() + 4 * error.square().mean() + 0.5 * difference_loss(decoded, pixels) + 3e-5 * divergence
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        averaged.update(step)
        step += 1
        if step % 200 == 0 or step == 20:
            psnr = -10 * torch.log10(F.mse_loss(decoded, pixels) / 4)
            log.write(
                step=step, seconds=clock.elapsed, loss=loss.item(), psnr=psnr.item(), divergence=divergence.item()
            )
        if clock.elapsed - saved > 120:
            saved = clock.elapsed
            save_weights(out, "autoencoder", averaged.part("autoencoder"))
    model.load_state_dict(averaged.part("autoencoder"), strict=False)
    before = evaluate(model, device)
    fold_statistics(model, device)
    log.write(
        step=step,
        held_out_psnr=before,
        folded_psnr=evaluate(model, device),
        psnr_96x160=evaluate(model, device, (96, 160)),
    )
    save_weights(out, "autoencoder", dict(model.named_parameters()))


def load_autoencoder(folder: Path, device: torch.device) -> Autoencoder:
    model = Autoencoder(postcard_config().autoencoder)
    model.load_state_dict(load_weights(folder, "autoencoder"), strict=False)
    return model.to(device).eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--batch", type=int, default=24, help="clips of 128x128 a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="folder of saved weights to continue from")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    train(arguments.out, arguments.minutes, arguments.batch, arguments.seed, arguments.resume, arguments.compile)


if __name__ == "__main__":
    main()
