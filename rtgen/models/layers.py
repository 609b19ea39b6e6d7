"""Small layers shared by the models."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32 and returned in the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps)
        return normed.to(x.dtype)


class ChannelRMSNorm(nn.Module):
    """Norm of the channel vector at each place of [B, C, F, H, W], scaled by sqrt(C) and a gain (Wan VAE's RMS_norm).

    The reference divides by max(norm, 1e-12); adding 1e-12 under the root differs by less than float32 resolves and
    needs no Max node. Numerator and denominator are scaled by 1e6, because graph optimizers take an added 1e-12 for
    zero and drop it. Frames that do not exist are all zeros, so the product is taken before float16 could overflow.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = channels**0.5
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        square = x.float().square().sum(dim=1, keepdim=True)
        normed = x.float() * (torch.rsqrt(1e12 * square + 1) * (1e6 * self.scale))
        return normed.to(x.dtype) * self.gamma.to(x.dtype)

    def channels_last(self, x: Tensor) -> Tensor:
        """The same of x [.., C] float32: the mean of squares is their sum by C, and so is what is added to it."""
        channels = x.shape[-1]
        return F.rms_norm(x, (channels,), self.gamma.flatten(), 1e-12 / channels)


def sinusoid(positions: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, [cos, sin], of float positions of any shape: [..., dim] float32 (Wan 2.1's time input)."""
    exponent = torch.arange(dim // 2, dtype=torch.float32, device=positions.device) / (dim // 2)
    angles = positions.float().unsqueeze(-1) * torch.pow(10000.0, -exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
