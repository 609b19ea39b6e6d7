"""The causal video diffusion transformer (Wan 2.1's DiT as Self-Forcing runs it).

Parameters carry the names of the original Wan checkpoints. How queries reach past keys is not the model's business:
an :class:`Attend` is passed in, so that training (a block mask), streaming (the K/V ring) and plain attention share
one implementation.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rtgen.config.model import DenoiserConfig
from rtgen.models.layers import RMSNorm, sinusoid
from rtgen.models.rope import rotate


class Attend(Protocol):
    """Self-attention of one layer: queries, rotated keys and values [B, heads, T, head_dim] to the same shape."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Per-frame affine of tokens: x [B, F * S, dim], shift and scale [B, F, dim]."""
    frames = x.unflatten(1, (shift.shape[1], -1))
    return (frames * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2)


def gated(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """x + branch * gate with a per-frame gate [B, F, dim], in float32."""
    frames = branch.float().unflatten(1, (gate.shape[1], -1))
    return x + (frames * gate.unsqueeze(2)).flatten(1, 2)


class SelfAttention(nn.Module):
    """q, k, v and o projections, RMS norm over the whole width of q and k, RoPE."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(config.dim, config.eps), RMSNorm(config.dim, config.eps)

    def project(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, rotated keys and values, [B, heads, T, head_dim]."""
        split = (self.heads, -1)
        query = rotate(self.norm_q(self.q(x)).unflatten(2, split), rotation).transpose(1, 2)
        key = rotate(self.norm_k(self.k(x)).unflatten(2, split), rotation).transpose(1, 2)
        return query, key, self.v(x).unflatten(2, split).transpose(1, 2)

    def merge(self, attention: Tensor) -> Tensor:
        """The attention of all heads, [B, heads, T, head_dim], to [B, T, dim]."""
        return self.o(attention.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention to the prompt. Padded prompt positions are zeros before the text projection, and not masked (Wan)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(config.dim, config.eps), RMSNorm(config.dim, config.eps)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        split = (self.heads, -1)
        query = self.norm_q(self.q(x)).unflatten(2, split).transpose(1, 2)
        key = self.norm_k(self.k(context)).unflatten(2, split).transpose(1, 2)
        value = self.v(context).unflatten(2, split).transpose(1, 2)
        return self.o(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward with per-frame modulation; the residual stream is float32."""

    def __init__(self, config: DenoiserConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.layer, self.self_attn = layer, SelfAttention(config)
        self.norm3 = nn.LayerNorm(config.dim, config.eps)
        self.cross_attn = CrossAttention(config)
        self.norm2 = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, time: Tensor, context: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        """x [B, T, dim] float32, time [B, F, 6, dim] float32, context [B, L, dim] in the weights' dtype."""
        shift, scale, *rest = (time + self.modulation.float()).unbind(2)
        query, key, value = self.enter(x, shift, scale, rotation)
        return self.leave(x, attend(self.layer, query, key, value), context, *rest)

    def enter(self, x: Tensor, shift: Tensor, scale: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All before the attention to past keys, which is the only part with a state: its queries, keys and values."""
        dtype = self.self_attn.q.weight.dtype
        return self.self_attn.project(modulate(self.norm1(x), shift, scale).to(dtype), rotation)

    def leave(
        self,
        x: Tensor,
        attention: Tensor,
        context: Tensor,
        gate1: Tensor,
        shift2: Tensor,
        scale2: Tensor,
        gate2: Tensor,
    ) -> Tensor:
        """All after it: the block's result from its input and the attention [B, heads, T, head_dim]."""
        dtype = self.self_attn.q.weight.dtype
        x = gated(x, self.self_attn.merge(attention), gate1)
        normed = F.layer_norm(x, self.norm3.normalized_shape, self.norm3.weight.float(), self.norm3.bias.float())
        x = x + self.cross_attn(normed.to(dtype), context).float()
        return gated(x, self.ffn(modulate(self.norm2(x), shift2, scale2).to(dtype)), gate2)


class Head(nn.Module):
    """Modulated norm and the projection back to latent patches."""

    def __init__(self, config: DenoiserConfig, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, channels * config.patch[1] * config.patch[2])
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (time.unsqueeze(2) + self.modulation.float()).unbind(2)
        return self.head(modulate(self.norm(x), shift, scale).to(self.head.weight.dtype))


class Embedded(NamedTuple):
    """The inputs of the blocks and of the head."""

    x: Tensor
    """Tokens [B, T, dim] float32."""
    time: Tensor
    """[B, F, dim] float32."""
    time_parts: Tensor
    """[B, F, 6, dim] float32."""
    text: Tensor
    """[B, L, dim] in the weights' dtype."""


class CausalVideoDiT(nn.Module):
    """Predicts the rectified-flow velocity (noise - clean) of latent frames."""

    def __init__(self, config: DenoiserConfig, *, channels: int, text_dim: int) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv3d(channels, config.dim, config.patch, config.patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(text_dim, config.dim), nn.GELU(approximate="tanh"), nn.Linear(config.dim, config.dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.frequency_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.head = Head(config, channels)

    def embed_patches(self, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] to tokens [B, F * rows * columns, dim]: the strided convolution written as a product."""
        weight, (_, height, width) = self.patch_embedding.weight, self.config.patch
        batch, channels, frames = latents.shape[:3]
        rows, columns = latents.shape[3] // height, latents.shape[4] // width
        patches = latents.reshape(batch, channels, frames, rows, height, columns, width)
        patches = patches.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, frames * rows * columns, -1)
        return F.linear(patches.to(weight.dtype), weight.flatten(1), self.patch_embedding.bias)

    def restore_patches(self, tokens: Tensor, frames: int, rows: int, columns: int) -> Tensor:
        """Tokens [B, F * rows * columns, height * width * C] to [B, C, F, H, W]."""
        _, height, width = self.config.patch
        grid = tokens.reshape(tokens.shape[0], frames, rows, columns, height, width, -1)
        return grid.permute(0, 6, 1, 2, 4, 3, 5).reshape(tokens.shape[0], -1, frames, rows * height, columns * width)

    def embed(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Embedded:
        """What the blocks and the head are given; arguments as in :meth:`forward`."""
        dtype = self.patch_embedding.weight.dtype
        x = self.embed_patches(latents).float()
        time = self.time_embedding(sinusoid(timestep, self.config.frequency_dim).to(dtype))
        time_parts = self.time_projection(time).unflatten(2, (6, -1)).float()
        return Embedded(x, time.float(), time_parts, self.text_embedding(context.to(dtype)))

    def project(self, x: Tensor, time: Tensor, shape: torch.Size) -> Tensor:
        """Velocity of latents of ``shape`` from the last block's tokens x [B, T, dim] and :class:`Embedded` time."""
        _, height, width = self.config.patch
        velocity = self.head(x, time).float()
        return self.restore_patches(velocity, shape[2], shape[3] // height, shape[4] // width)

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        """Velocity [B, C, F, H, W] float32.

        latents [B, C, F, H, W] float32; timestep [B, F] float32 in 0..1000; context [B, L, text_dim]; rotation
        [F * rows * columns, head_dim / 2, 2] float32 from :func:`rtgen.models.rope.token_rotation`.
        """
        x, time, time_parts, text = self.embed(latents, timestep, context)
        for block in self.blocks:
            x = block(x, time_parts, text, rotation, attend)
        return self.project(x, time, latents.shape)
