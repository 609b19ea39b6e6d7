"""Train the autoencoder on rendered clips.

    python -m scripts.postcard.train_autoencoder --out runs/autoencoder --minutes 9

Losses: absolute error, absolute error of neighbouring differences in space and time (edges and motion of small
things), the logarithm of each clip's squared error (PSNR), and a weak Kullback-Leibler term. The decoder also sees
slightly noised latents, since a denoiser's are never exact. At the end the per-channel mean and deviation of the
latents are folded into the 1x1x1 convolutions next to them, so that shipped latents are normalised.
``--freeze-encoder`` goes on with the decoder alone while a denoiser learns the latents.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rtgen.models.autoencoder import Autoencoder
from scripts.postcard.data import RENDERED_AT_ONCE, ClipSource, Pool, to_signed
from scripts.postcard.distributed import Group, join
from scripts.postcard.grammar import held_out_scenes, random_scene
from scripts.postcard.muon import StackedMuon
from scripts.postcard.render import render_indices
from scripts.postcard.training import (
    AveragedWeights,
    Clock,
    KernelMatrices,
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
RATE = 1e-3
"""Of both optimizers at its highest."""


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


def reconstruct(model: Halves, pixels: Tensor, noise: float, *, frozen: bool) -> tuple[Tensor, Tensor]:
    """Decoded pixels and the Kullback-Leibler term; ``noise`` is relative to each channel's deviation."""
    with torch.set_grad_enabled(not frozen):
        mean, log_variance = model.encode(pixels)
    mean, log_variance = mean.float(), log_variance.float().clamp(-20, 10)
    latents = mean if frozen else mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
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


def is_kernel(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is an inner convolution's: neither pixels nor latents lie at either end of it."""
    decoder = "streaming_decoder.decoder."
    outer = ("encoder.conv1.", "encoder.head.", "conv1.", "streaming_decoder.conv2.", f"{decoder}conv1.",
             f"{decoder}head.")  # fmt: skip
    return parameter.ndim >= 4 and parameter[0].numel() > 1 and not name.startswith(outer)


class Trained:
    """The model, the part of it that learns, and its optimizers: Muon for inner convolutions, AdamW for the rest."""

    def __init__(self, resume: Path | None, group: Group, *, freeze_encoder: bool, compiling: bool) -> None:
        self.model = Autoencoder(postcard_config().autoencoder)
        if resume:
            self.model.load_state_dict(load_weights(resume, "autoencoder"), strict=False)
        self.model.to(group.device)
        group.same([self.model])
        self.part: nn.Module = self.model.streaming_decoder if freeze_encoder else self.model
        self.frozen = freeze_encoder
        for parameter in self.model.parameters():
            if parameter.ndim >= 4:
                form = torch.channels_last_3d if parameter.ndim == 5 else torch.channels_last
                parameter.data = parameter.data.contiguous(memory_format=form)
        prefix = "streaming_decoder." if freeze_encoder else ""
        named = {prefix + name: parameter for name, parameter in self.part.named_parameters()}
        self.kernels = KernelMatrices(value for name, value in named.items() if is_kernel(name, value))
        others = [value for name, value in named.items() if not is_kernel(name, value)]
        self.optimizers = [
            StackedMuon(self.kernels.matrices, rate=RATE, weight_decay=0.0),
            torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=group.device.type == "cuda"),
        ]
        self.averaged = AveragedWeights({"autoencoder": self.model}, decay=0.999)
        self.eager = Halves(self.model.encode, self.model.streaming_decoder)
        self.compiled = (
            Halves(torch.compile(self.model.encode), torch.compile(self.model.streaming_decoder))
            if compiling
            else self.eager
        )

    def step(self, loss: Tensor, group: Group, count: int) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None
        loss.backward()
        group.average(self.part.parameters())
        torch.nn.utils.clip_grad_norm_(self.part.parameters(), 1.0)
        self.kernels.load_gradients()
        for optimizer in self.optimizers:
            optimizer.step()
        self.averaged.update(count)


def reconstruction_loss(decoded: Tensor, pixels: Tensor, psnr_weight: float) -> Tensor:
    """Absolute error, its neighbouring differences, and each clip's squared error in the logarithm.

    The last is PSNR up to a factor: an easy clip has as much to gain from a halved error as a hard one.
    """
    error = decoded - pixels
    logarithm = (error.square().mean(dim=(1, 2, 3, 4)) + 1e-5).log().mean()
    return error.abs().mean() + psnr_weight * logarithm + 0.25 * difference_loss(decoded, pixels)


def train(arguments: argparse.Namespace, group: Group) -> None:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    device, out, seed = group.device, arguments.out, arguments.seed + 1009 * group.rank
    torch.manual_seed(arguments.seed)
    trained = Trained(arguments.resume, group, freeze_encoder=arguments.freeze_encoder, compiling=arguments.compile)
    torch.manual_seed(seed)
    clock, log, rng = Clock(arguments.minutes), Log(out / "log.jsonl"), random.Random(seed)
    pools = {
        size: Pool(
            arguments.pool, ClipSource(RENDERED_AT_ONCE, 3 * FRAMES, size, seed, device).pixels, RENDERED_AT_ONCE
        )
        for size in set(SIZES)
    }
    drawn = dict.fromkeys(pools, 0)
    step, saved, fraction = 0, 0.0, 0.0
    while fraction < 1:
        size = SIZES[step % len(SIZES)]
        count = max(1, arguments.batch * 128 * 128 // (size[0] * size[1]))
        drawn[size] += 1
        if drawn[size] % 32 == 0:
            pools[size].refresh()
        if step % 10 == 0:
            fraction = group.agree(clock.fraction)
        start = rng.randrange(2 * FRAMES + 1)
        pixels = to_signed(pools[size].draw(count)["pixels"][:, start : start + FRAMES]).contiguous(
            memory_format=torch.channels_last_3d
        )
        warmup, decay_from = (50, 0.1) if arguments.resume else (200, 0.5)
        factor = learning_rate_factor(step, fraction, warmup_steps=warmup, decay_from=decay_from)
        set_rate(trained.optimizers, RATE * factor)
        with torch.autocast(device.type, torch.bfloat16):
            halves = trained.compiled if size == SIZES[0] else trained.eager
            decoded, divergence = reconstruct(halves, pixels, arguments.noise, frozen=trained.frozen)
        loss = reconstruction_loss(decoded, pixels, arguments.psnr_weight) + 3e-5 * divergence
        trained.step(loss, group, step)
        step += 1
        if group.is_first and (step % 200 == 0 or step == 20):
            psnr = -10 * torch.log10(F.mse_loss(decoded, pixels) / 4)
            log.write(
                step=step, seconds=clock.elapsed, loss=loss.item(), psnr=psnr.item(), divergence=divergence.item()
            )
        if group.is_first and clock.elapsed - saved > 60:
            saved = clock.elapsed
            save_weights(out, "autoencoder", trained.averaged.part("autoencoder"))
    if group.is_first:
        finish(trained, out, log, step, device)


def finish(trained: Trained, out: Path, log: Log, step: int, device: torch.device) -> None:
    """Fold the statistics, unless the encoder was settled before, measure and save."""
    model = trained.model
    model.load_state_dict(trained.averaged.part("autoencoder"), strict=False)
    before = evaluate(model, device)
    if not trained.frozen:
        fold_statistics(model, device)
    save_weights(out, "autoencoder", dict(model.named_parameters()))
    log.write(
        step=step,
        held_out_psnr=before,
        folded_psnr=evaluate(model, device),
        psnr_96x160=evaluate(model, device, (96, 160)),
        psnr_192x192=evaluate(model, device, (192, 192)),
    )


def load_autoencoder(folder: Path, device: torch.device) -> Autoencoder:
    model = Autoencoder(postcard_config().autoencoder)
    model.load_state_dict(load_weights(folder, "autoencoder"), strict=False)
    return model.to(device).eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--batch", type=int, default=16, help="clips of 128x128 a step and GPU")
    parser.add_argument("--pool", type=int, default=192, help="rendered clips of each size kept on the device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="folder of saved weights to continue from")
    parser.add_argument(
        "--freeze-encoder", action="store_true", help="train the decoder alone; latents stay as they are"
    )
    parser.add_argument("--noise", type=float, default=0.1, help="most noise on latents, in deviations of a channel")
    parser.add_argument("--psnr-weight", type=float, default=0.1, help="of the logarithm of the squared error")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args(), join())


if __name__ == "__main__":
    main()
