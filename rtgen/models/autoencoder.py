"""The causal convolutional autoencoder (Wan 2.1's VAE form) with a streaming decoder.

Parameters carry the names of the original Wan VAE checkpoint: ``encoder.*``, ``decoder.*``, ``conv1``, ``conv2``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from rtgen.config.model import AutoencoderConfig
from rtgen.models.autoencoder_blocks import KERNEL, AttentionBlock, Downsample, ResidualBlock, Upsample, Validity
from rtgen.models.causal_conv import CausalConv3d, StreamState
from rtgen.models.layers import ChannelRMSNorm


class Encoder(nn.Module):
    """Pixels to the parameters of the latent distribution. Runs on whole clips (training and evaluation)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in (1, *config.multipliers)]
        self.conv1 = CausalConv3d(3 * config.pixel_patch**2, widths[0], KERNEL)
        self.downsamples = nn.ModuleList()
        for level, (inside, outside) in enumerate(pairwise(widths)):
            for block in range(config.residual_blocks):
                self.downsamples.append(ResidualBlock(inside if block == 0 else outside, outside))
            if level < len(config.temporal_downsample):
                self.downsamples.append(Downsample(outside, temporal=config.temporal_downsample[level]))
        top = widths[-1]
        self.middle = nn.ModuleList([ResidualBlock(top, top), AttentionBlock(top), ResidualBlock(top, top)])
        self.head = nn.Sequential(ChannelRMSNorm(top), nn.SiLU(), CausalConv3d(top, 2 * config.latent_channels, KERNEL))

    def forward(self, x: Tensor) -> Tensor:
        state, validity = StreamState(), Validity(None)
        x = self.conv1(x, state)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, state, validity) if isinstance(layer, ResidualBlock) else layer(x)
        norm, silu, conv = self.head
        return conv(silu(norm(x)), state)


class Decoder(nn.Module):
    """Latents to pixels, chunk by chunk."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        reverse = config.multipliers[::-1]
        base = config.decoder_base_channels or config.base_channels
        widths = [base * multiplier for multiplier in (reverse[0], *reverse)]
        self.conv1 = CausalConv3d(config.latent_channels, widths[0], KERNEL)
        top = widths[0]
        self.middle = nn.ModuleList([ResidualBlock(top, top), AttentionBlock(top), ResidualBlock(top, top)])
        self.upsamples = nn.ModuleList()
        temporal = config.temporal_downsample[::-1]
        for level, (inside, outside) in enumerate(pairwise(widths)):
            entering = inside if level == 0 else inside // 2
            for block in range(config.residual_blocks + 1):
                self.upsamples.append(ResidualBlock(entering if block == 0 else outside, outside))
            if level < len(temporal):
                self.upsamples.append(Upsample(outside, temporal=temporal[level]))
        bottom = widths[-1]
        self.head = nn.Sequential(
            ChannelRMSNorm(bottom), nn.SiLU(), CausalConv3d(bottom, 3 * config.pixel_patch**2, KERNEL)
        )

    def forward(self, x: Tensor, state: StreamState, validity: Validity) -> Tensor:
        x = self.conv1(x, state)
        for layer in (*self.middle, *self.upsamples):
            if isinstance(layer, ResidualBlock):
                x = layer(x, state, validity)
            elif isinstance(layer, Upsample):
                x, validity = layer(x, state, validity)
            else:
                x = layer(x)
        norm, silu, conv = self.head
        return conv(silu(norm(validity(x))), state)


def fold_pixels(x: Tensor, patch: int) -> Tensor:
    """[B, C, F, H, W] to [B, C * patch * patch, F, H / patch, W / patch], columns before rows (Wan 2.2's patchify)."""
    batch, channels, frames, height, width = x.shape
    x = x.reshape(batch, channels, frames, height // patch, patch, width // patch, patch)
    return x.permute(0, 1, 6, 4, 2, 3, 5).reshape(batch, -1, frames, height // patch, width // patch)


def unfold_pixels(x: Tensor, patch: int) -> Tensor:
    """The inverse of :func:`fold_pixels`."""
    batch, channels, frames, rows, columns = x.shape
    x = x.reshape(batch, channels // patch**2, patch, patch, frames, rows, columns)
    return x.permute(0, 1, 4, 5, 3, 6, 2).reshape(batch, -1, frames, rows * patch, columns * patch)


def latent_statistics(config: AutoencoderConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latent channels, each [1, C, 1, 1, 1] float32."""
    shape = (1, config.latent_channels, 1, 1, 1)
    mean = torch.tensor(config.latent_mean, dtype=torch.float32, device=device).reshape(shape)
    return mean, torch.tensor(config.latent_std, dtype=torch.float32, device=device).reshape(shape)


class StreamingDecoder(nn.Module):
    """What ships of the autoencoder: latent normalisation, ``conv2`` and the decoder."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.statistics: Callable[[torch.device], tuple[Tensor, Tensor]] = partial(latent_statistics, config)
        """Mean and deviation of the latent channels, on a device."""
        self.conv2 = CausalConv3d(config.latent_channels, config.latent_channels, (1, 1, 1))
        self.decoder = Decoder(config)

    def forward(
        self, latents: Tensor, first: Tensor | None = None, past: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Decode normalised latents [B, C, F, h, w] float32 to pixels [B, 3, temporal_stride * F, H, W] in -1..1.

        ``first`` as in :class:`Validity`; ``past``: states of the chunk before, None at the start of a stream. Returns
        the states for the next chunk too. With ``single_first_frame`` the first ``temporal_stride - 1`` frames of a
        stream do not exist and must be dropped.
        """
        validity = Validity(first if self.config.single_first_frame else None)
        state = StreamState(past)
        mean, std = self.statistics(latents.device)
        x = (latents * std + mean).to(self.conv2.weight.dtype)
        pixels = self.decoder(self.conv2(x), state, validity)
        return unfold_pixels(pixels, self.config.pixel_patch), state.present


class Autoencoder(nn.Module):
    """Encoder and decoder together, for training and evaluation."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.latent_channels, 2 * config.latent_channels, (1, 1, 1))
        self.streaming_decoder = StreamingDecoder(config)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, 3, F, H, W] in -1..1 to mean and log-variance [B, C, F / 4, h, w], not normalised."""
        mean, log_variance = self.conv1(self.encoder(fold_pixels(pixels, self.config.pixel_patch))).chunk(2, dim=1)
        return mean, log_variance

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents to about zero mean and unit deviation per channel."""
        mean, std = latent_statistics(self.config, latents.device)
        return (latents - mean) / std
