"""A T5-style text encoder (UMT5): gated GELU, RMS norms, a relative position bias in every layer.

Parameters carry the names of the Wan 2.1 text encoder checkpoint.
"""

import math

import torch
from torch import Tensor, nn

from rtgen.config.model import TextEncoderConfig
from rtgen.models.layers import RMSNorm

EPS = 1e-6


def relative_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """Bucket of each (query, key) distance, [length, length] int64, both directions (T5, arXiv 1910.10683)."""
    position = torch.arange(length)
    distance = position[None, :] - position[:, None]
    half = buckets // 2
    exact = half // 2
    far = distance.abs().clamp(min=1).float()
    logarithmic = exact + (torch.log(far / exact) / math.log(max_distance / exact) * (half - exact)).long()
    magnitude = torch.where(distance.abs() < exact, distance.abs(), logarithmic.clamp(max=half - 1))
    return magnitude + half * (distance > 0).long()


class TextAttention(nn.Module):
    """Unscaled multi-head attention with an additive bias; the softmax is float32."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.q, self.k, self.v = (nn.Linear(config.dim, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (
            linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for linear in (self.q, self.k, self.v)
        )
        scores = (query @ key.transpose(2, 3)).float() + bias
        y = scores.softmax(dim=-1).to(value.dtype) @ value
        return self.o(y.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """fc2(fc1(x) * gelu(gate(x)))."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(config.dim, config.ffn_dim, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.fc2 = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x) * self.gate(x))


class RelativeBias(nn.Module):
    """The learned bias of each head by distance bucket."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.position_buckets, config.heads)

    def forward(self, buckets: Tensor) -> Tensor:
        return self.embedding(buckets).permute(2, 0, 1).unsqueeze(0).float()


class TextBlock(nn.Module):
    """Attention and feed-forward; the residual stream is float32."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(config.dim, EPS), RMSNorm(config.dim, EPS)
        self.attn = TextAttention(config)
        self.ffn = GatedFeedForward(config)
        self.pos_embedding = RelativeBias(config)

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor) -> Tensor:
        dtype = self.attn.q.weight.dtype
        bias = self.pos_embedding(buckets) + padding
        x = x + self.attn(self.norm1(x).to(dtype), bias).float()
        return x + self.ffn(self.norm2(x).to(dtype)).float()


class TextEncoder(nn.Module):
    """Token ids to context vectors."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.dim)
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, EPS)

    def embed(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inputs of the blocks: tokens [B, L, dim] float32, distance buckets and the bias of padding."""
        padding = (1.0 - mask.float())[:, None, None, :] * -1e4  # -1e4 is minus infinity to a float16 softmax
        config = self.config
        buckets = relative_buckets(ids.shape[1], config.position_buckets, config.max_distance).to(ids.device)
        return self.token_embedding(ids).float(), buckets, padding

    def project(self, x: Tensor, mask: Tensor) -> Tensor:
        """Context from the last block's tokens."""
        return self.norm(x) * mask.float().unsqueeze(-1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids and mask [B, L] int64 (mask 1 at words, 0 at padding) to context [B, L, dim] float32.

        Padded positions come out as zeros: the denoiser attends to them unmasked (Wan 2.1). Words do not see them, so
        a cut to the words alone gives the same.
        """
        x, buckets, padding = self.embed(ids, mask)
        for block in self.blocks:
            x = block(x, buckets, padding)
        return self.project(x, mask)
