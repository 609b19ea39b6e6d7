"""What generating chunk by chunk in torch takes: the K/V window, rotary tables and noise levels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.config.model import ModelConfig
from rtgen.models.rope import axis_table, token_rotation
from rtgen.runtime.schedule import sigmas


class StreamAttention:
    """Self-attention over keys and values [B, H, T, D] of the last chunks and those of the present pass."""

    def __init__(self) -> None:
        self.past: list[dict[int, tuple[Tensor, Tensor]]] = []
        self.present: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.present[layer] = (key.detach(), value.detach())
        seen = [*(past[layer] for past in self.past), (key, value)]
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*seen, strict=True))
        return F.scaled_dot_product_attention(query, keys, values)

    def commit(self, keep: int) -> None:
        """Take what the last pass saw as the newest of ``keep`` past chunks."""
        self.past = [*self.past, self.present][-keep:]
        self.present = {}


def chunk_rotation(config: ModelConfig, chunk: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Rotary tables of one chunk of the stream: [tokens, head_dim / 2, 2]."""
    frames, theta = config.cache.chunk, config.denoiser.rope_theta
    counts = (torch.arange(chunk * frames, (chunk + 1) * frames), torch.arange(rows), torch.arange(columns))
    time, height, width = (
        axis_table(positions.to(device), channels, theta)
        for positions, channels in zip(counts, config.denoiser.rope_split, strict=True)
    )
    return token_rotation((time, height, width))


def even_levels(steps: int, shift: float) -> tuple[float, ...]:
    """Noise levels of ``steps`` evenly spaced timesteps, warped by ``shift``."""
    return sigmas(tuple(1000 * (1 - index / steps) for index in range(steps)), shift)
