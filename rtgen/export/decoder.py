"""The streaming decoder's graph: latents to 8-bit frames, with the convolutions' past frames as state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rtgen.export.graph import ExportedGraph
from rtgen.export.streaming import PastFrames, export_streaming, frame_levels, take_frames
from rtgen.models.autoencoder import StreamingDecoder

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import Precision


class DecoderStep(nn.Module):
    """Latents [1, C, F, h, w] float32 to frames [stride * F, H, W, 3] uint8 and the next states.

    With ``latent_frames`` [N] int64 only these N latent frames are decoded.
    """

    def __init__(self, model: StreamingDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        latents: Tensor,
        past: list[Tensor],
        first: Tensor | None = None,
        latent_frames: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        pixels, present = self.model(take_frames(latents, latent_frames), first, past)
        return frame_levels(((pixels.float() + 1) * 127.5).round().clamp(0, 255)), *present


def past_frames(config: ModelConfig, model: StreamingDecoder) -> list[PastFrames]:
    """Every state, found by running the decoder small."""
    dtype = model.conv2.weight.dtype
    with torch.no_grad():
        latents = torch.zeros(1, config.autoencoder.latent_channels, 1, 2, 2)
        _, states = model.to(torch.float32)(latents, torch.zeros(1))
    model.to(dtype)
    return [PastFrames(state.shape[1], state.shape[2], state.shape[3] // 2) for state in states]


def export_decoder(config: ModelConfig, model: StreamingDecoder, precision: Precision) -> ExportedGraph:
    """Export ``model`` (already in the recipe's dtype)."""
    marks_first = config.autoencoder.single_first_frame
    return export_streaming(config, DecoderStep(model), past_frames(config, model), precision, marks_first=marks_first)
