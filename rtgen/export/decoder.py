"""The streaming decoder's graph: a chunk of latents to 8-bit frames, with the convolutions' past frames as state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rtgen.engine.manifest import StateEntry, TensorEntry
from rtgen.export.graph import ExportedGraph, export_graph
from rtgen.models.autoencoder import StreamingDecoder

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import Precision


class DecoderStep(nn.Module):
    """Latents [1, C, F, h, w] float32 to frames [stride * F, H, W, 3] uint8 and the next states."""

    def __init__(self, model: StreamingDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, past: list[Tensor], first: Tensor | None = None) -> tuple[Tensor, ...]:
        pixels, present = self.model(latents, first, past)
        levels = ((pixels.float() + 1) * 127.5).round().clamp(0, 255)
        # TensorRT takes uint8 only as the very last step, so the layout changes before the cast.
        return levels[0].permute(1, 2, 3, 0).contiguous().to(torch.uint8), *present


def state_shapes(config: ModelConfig, model: StreamingDecoder) -> list[tuple[int, int, int]]:
    """Channels, frames and spatial scale (against the latents) of each state, found by running the decoder small."""
    dtype = model.conv2.weight.dtype
    with torch.no_grad():
        latents = torch.zeros(1, config.autoencoder.latent_channels, 1, 2, 2)
        _, states = model.to(torch.float32)(latents, torch.zeros(1))
    model.to(dtype)
    return [(state.shape[1], state.shape[2], state.shape[3] // 2) for state in states]


def export_decoder(config: ModelConfig, model: StreamingDecoder, precision: Precision) -> ExportedGraph:
    """Export ``model`` (already in the recipe's dtype)."""
    auto, chunk = config.autoencoder, config.cache.chunk
    patch_rows, patch_columns = config.denoiser.patch[1:]
    shapes = state_shapes(config, model)
    latents = (1, auto.latent_channels, chunk, f"{patch_rows}*rows", f"{patch_columns}*columns")
    past = [
        TensorEntry(
            name=f"past_{index}",
            dtype=precision,
            shape=(1, channels, frames, f"{patch_rows * scale}*rows", f"{patch_columns * scale}*columns"),
        )
        for index, (channels, frames, scale) in enumerate(shapes)
    ]
    inputs = [TensorEntry(name="latents", dtype="float32", shape=latents), *past]
    if auto.single_first_frame:
        inputs.append(TensorEntry(name="first", dtype="float32", shape=(1,)))
    height, width = (f"{step}*{name}" for step, name in zip(config.size_step, ("rows", "columns"), strict=True))
    frames_shape = (chunk * auto.temporal_stride, height, width, 3)
    outputs = [
        TensorEntry(name="frames", dtype="uint8", shape=frames_shape),
        *(tensor.model_copy(update={"name": f"{tensor.name}_out"}) for tensor in past),
    ]
    states = [StateEntry(input=tensor.name, output=f"{tensor.name}_out", update="swap") for tensor in past]
    dtype = torch.float16 if precision == "float16" else torch.float32
    rows, columns = 6, 10
    high, wide = torch.export.Dim("latent_height", min=2, max=512), torch.export.Dim("latent_width", min=2, max=512)
    example: dict[str, Tensor | list[Tensor]] = {
        "latents": torch.zeros(1, auto.latent_channels, chunk, rows, columns),
        "past": [torch.zeros(1, c, f, rows * scale, columns * scale, dtype=dtype) for c, f, scale in shapes],
    }
    dynamic: dict[str, object] = {
        "latents": {3: high, 4: wide},
        "past": [{3: scale * high, 4: scale * wide} for _, _, scale in shapes],
    }
    if auto.single_first_frame:
        example["first"], dynamic["first"] = torch.zeros(1), None
    return export_graph(DecoderStep(model), example, dynamic, inputs, outputs, states)
