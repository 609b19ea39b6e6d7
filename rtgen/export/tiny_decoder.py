"""The tiny decoder's graph: a chunk of latents to 8-bit frames, with one past frame of each memory block as state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rtgen.engine.manifest import StateEntry, TensorEntry
from rtgen.export.graph import ExportedGraph, export_graph
from rtgen.models.taehv import TinyDecoder

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import Precision


class TinyDecoderStep(nn.Module):
    """Latents [1, C, F, h, w] float32 to frames [4 * F, 8 * h, 8 * w, 3] uint8 and the next states."""

    def __init__(self, model: TinyDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        pixels, present = self.model(latents, past)
        levels = (pixels.float() * 255).round()
        # TensorRT takes uint8 only as the very last step, so the layout changes before the cast.
        return levels[0].permute(1, 2, 3, 0).contiguous().to(torch.uint8), *present


def state_shapes(config: ModelConfig, model: TinyDecoder) -> list[tuple[int, int]]:
    """Channels and spatial scale (against the latents) of each state, found by running the decoder small."""
    with torch.no_grad():
        _, states = model(torch.zeros(1, config.autoencoder.latent_channels, 1, 2, 2))
    return [(state.shape[1], state.shape[3] // 2) for state in states]


def export_tiny_decoder(config: ModelConfig, model: TinyDecoder, precision: Precision) -> ExportedGraph:
    """Export ``model`` (already in the recipe's dtype)."""
    channels, chunk = config.autoencoder.latent_channels, config.cache.chunk
    patch_rows, patch_columns = config.denoiser.patch[1:]
    shapes = state_shapes(config, model)
    past = [
        TensorEntry(
            name=f"past_{index}",
            dtype=precision,
            shape=(1, width, 1, f"{patch_rows * scale}*rows", f"{patch_columns * scale}*columns"),
        )
        for index, (width, scale) in enumerate(shapes)
    ]
    latents = (1, channels, chunk, f"{patch_rows}*rows", f"{patch_columns}*columns")
    height, width = (f"{step}*{name}" for step, name in zip(config.size_step, ("rows", "columns"), strict=True))
    inputs = [TensorEntry(name="latents", dtype="float32", shape=latents), *past]
    outputs = [
        TensorEntry(name="frames", dtype="uint8", shape=(chunk * model.temporal_stride, height, width, 3)),
        *(tensor.model_copy(update={"name": f"{tensor.name}_out"}) for tensor in past),
    ]
    states = [StateEntry(input=tensor.name, output=f"{tensor.name}_out", update="swap") for tensor in past]
    dtype = torch.float16 if precision == "float16" else torch.float32
    rows, columns = 6, 10
    high, wide = torch.export.Dim("latent_height", min=2, max=512), torch.export.Dim("latent_width", min=2, max=512)
    example: dict[str, Tensor | list[Tensor]] = {
        "latents": torch.zeros(1, channels, chunk, rows, columns),
        "past": [torch.zeros(1, width, 1, rows * scale, columns * scale, dtype=dtype) for width, scale in shapes],
    }
    dynamic: dict[str, object] = {
        "latents": {3: high, 4: wide},
        "past": [{3: scale * high, 4: scale * wide} for _, scale in shapes],
    }
    return export_graph(TinyDecoderStep(model), example, dynamic, inputs, outputs, states)
