"""The tiny decoder's graph: latents to 8-bit frames, with one past frame of each memory block as state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rtgen.export.graph import ExportedGraph
from rtgen.export.streaming import PastFrames, export_streaming, frame_levels, take_frames
from rtgen.models.taehv import TinyDecoder

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import Precision


class TinyDecoderStep(nn.Module):
    """Latents [1, C, F, h, w] float32 to frames [4 * F, 8 * h, 8 * w, 3] uint8 and the next states.

    With ``latent_frames`` [N] int64 only these N latent frames are decoded.
    """

    def __init__(self, model: TinyDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, past: list[Tensor], latent_frames: Tensor | None = None) -> tuple[Tensor, ...]:
        pixels, present = self.model(take_frames(latents, latent_frames), past)
        return frame_levels((pixels.float() * 255).round()), *present


def past_frames(config: ModelConfig, model: TinyDecoder) -> list[PastFrames]:
    """Every state, found by running the decoder small."""
    with torch.no_grad():
        _, states = model(torch.zeros(1, config.autoencoder.latent_channels, 1, 2, 2))
    return [PastFrames(state.shape[1], state.shape[2], state.shape[3] // 2) for state in states]


def export_tiny_decoder(config: ModelConfig, model: TinyDecoder, precision: Precision) -> ExportedGraph:
    """Export ``model`` (already in the recipe's dtype)."""
    return export_streaming(config, TinyDecoderStep(model), past_frames(config, model), precision, marks_first=False)
