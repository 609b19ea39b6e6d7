"""The causal convolutional autoencoder (Wan 2.1's VAE form) with a streaming decoder.

Parameters carry the names of the original Wan VAE checkpoint: ``encoder.*``, ``decoder.*``, ``conv1``, ``conv2``.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rtgen.config.model import AutoencoderConfig
from rtgen.models.causal_conv import CausalConv3d, FrameConv2d, StreamState, upsample_nearest
from rtgen.models.layers import ChannelRMSNorm

KERNEL = (3, 3, 3)


class Validity:
    """Which frames exist when the first latent frame of a stream stands for one pixel frame.

    Such a frame is carried as a full group whose leading frames do not exist: they are held at zero, which is what a
    causal convolution sees before the start. ``first`` [1] float is 1 for the chunk that opens a stream, else 0;
    None: every latent frame is a full group and nothing is masked.
    """

    def __init__(self, first: Tensor | None) -> None:
        self.first = first
        self.missing = 0

    def doubled(self) -> "Validity":
        """After an up-sampling in time: one missing frame more than twice as many."""
        finer = Validity(self.first)
        finer.missing = 2 * self.missing + 1
        return finer

    def __call__(self, x: Tensor, missing: int | None = None) -> Tensor:
        """Zero the missing frames of x [B, C, F, H, W]."""
        count = self.missing if missing is None else missing
        if self.first is None or count == 0:
            return x
        frame = torch.arange(x.shape[2], device=x.device)
        keep = 1 - self.first * (frame < count).float()
        return x * keep.to(x.dtype)[None, None, :, None, None]


class ResidualBlock(nn.Module):
    """norm, SiLU, causal convolution, twice; 1x1x1 shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ChannelRMSNorm(in_channels),
            nn.SiLU(),
            CausalConv3d(in_channels, out_channels, KERNEL),
            ChannelRMSNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(0.0),  # keeps the checkpoint's numbering
            CausalConv3d(out_channels, out_channels, KERNEL),
        )
        self.shortcut = CausalConv3d(in_channels, out_channels, (1, 1, 1)) if in_channels != out_channels else None

    def forward(self, x: Tensor, state: StreamState, validity: Validity) -> Tensor:
        norm1, silu, conv1, norm2, _, _, conv2 = self.residual
        y = conv1(silu(norm1(validity(x))), state)
        y = conv2(silu(norm2(validity(y))), state)
        return y + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head attention over the places of each frame, then a 1x1 convolution and the residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm(channels)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, F, H, W]."""
        batch, channels, frames, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 4, 1).reshape(batch * frames, height * width, channels)
        weight = self.to_qkv.weight.flatten(1)
        query, key, value = F.linear(tokens, weight, self.to_qkv.bias).unsqueeze(1).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        y = F.linear(y, self.proj.weight.flatten(1), self.proj.bias)
        return x + y.reshape(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)


class Upsample(nn.Module):
    """Double height and width (halving channels), and time first where ``temporal``."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.time_conv = CausalConv3d(channels, channels * 2, (3, 1, 1)) if temporal else None
        # index 1, as in the checkpoint, where index 0 is the parameterless up-sampling
        self.resample = nn.ModuleList([nn.Identity(), FrameConv2d(channels, channels // 2, 3, padding=1)])

    def forward(self, x: Tensor, state: StreamState, validity: Validity) -> tuple[Tensor, Validity]:
        if self.time_conv is not None:
            # The opening frame is not split in time, and the frames after it do not see it here (Wan's "Rep").
            opening = validity.missing + 1
            pairs = self.time_conv(validity(x, opening), state)
            pairs = pairs.unflatten(1, (2, -1))
            if validity.first is not None:
                pairs = self._keep_opening(pairs, x, validity.first, opening)
            x = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
            validity = validity.doubled()
        return self.resample[1](upsample_nearest(x)), validity

    @staticmethod
    def _keep_opening(pairs: Tensor, x: Tensor, first: Tensor, opening: int) -> Tensor:
        """Where a stream opens, its first frame itself stands in both halves of its pair."""
        frame = torch.arange(x.shape[2], device=x.device)
        taken = (first * (frame < opening).float()).to(x.dtype)[None, None, None, :, None, None]
        return pairs * (1 - taken) + x.unsqueeze(1) * taken


class Downsample(nn.Module):
    """Halve height and width, and time after it where ``temporal``."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), FrameConv2d(channels, channels, 3, stride=2)])
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor) -> Tensor:
        """Whole clips only: x [B, C, F, H, W] with F even where ``temporal``."""
        x = self.resample[1](F.pad(x, (0, 1, 0, 1)))
        if self.time_conv is None:
            return x
        return self.time_conv(F.pad(x, (0, 0, 0, 0, 1, 0)))


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
        widths = [config.base_channels * multiplier for multiplier in (reverse[0], *reverse)]
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
        mean, std = latent_statistics(self.config, latents.device)
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
