"""The blocks of the autoencoder: residual, attention, sampling, and which frames exist."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

    def existing(self, frames: int, device: torch.device, missing: int | None = None) -> Tensor | None:
        """[F] float32: 1 for frames that exist, 0 for others; None where all do."""
        count = self.missing if missing is None else missing
        if self.first is None or count == 0:
            return None
        return 1 - self.first * (torch.arange(frames, device=device) < count).float()

    def __call__(self, x: Tensor, missing: int | None = None) -> Tensor:
        """Zero the missing frames of x [B, C, F, H, W]."""
        keep = self.existing(x.shape[2], x.device, missing)
        return x if keep is None else x * keep.to(x.dtype)[None, None, :, None, None]


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
        y = self.attend(tokens)
        return x + y.reshape(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)

    def attend(self, tokens: Tensor) -> Tensor:
        """Attention and the convolution after it, for the places of each frame: tokens [frames, places, C]."""
        weight = self.to_qkv.weight.flatten(1)
        query, key, value = F.linear(tokens, weight, self.to_qkv.bias).unsqueeze(1).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        return F.linear(y, self.proj.weight.flatten(1), self.proj.bias)


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
