"""What the graphs of both decoders share: latents of a chunk in, 8-bit frames out, past frames as state.

A decoder takes the whole chunk at once, or a few of its latent frames (``decode_frames`` of the model config). Then the
graph has one more input, ``latent_frames``: which of the chunk's latent frames it decodes. So the chunk's latents are
copied to the decoder once, as they are, and stay there for all its runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rtgen.engine.manifest import StateEntry, TensorEntry
from rtgen.export.graph import ExportedGraph, export_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import Precision

ROWS, COLUMNS = 6, 10
"""Latent size at which the graphs are traced."""

_Size = TypeVar("_Size", int, str)


class PastFrames(NamedTuple):
    """A state: past frames somewhere inside the decoder."""

    channels: int
    frames: int
    scale: int
    """Rows and columns against those of the latents."""
    coded: bool = False
    """Whether they are 8-bit codes [frames, rows, columns, channels], or [1, channels, frames, rows, columns]."""

    def arranged(self, rows: _Size, columns: _Size) -> tuple[int | _Size, ...]:
        """The shape, for this many rows and columns."""
        if self.coded:
            return self.frames, rows, columns, self.channels
        return 1, self.channels, self.frames, rows, columns


def take_frames(latents: Tensor, latent_frames: Tensor | None) -> Tensor:
    """Of latents [1, C, F, h, w] the frames numbered ``latent_frames`` [N] int64, in this order; None: all."""
    return latents if latent_frames is None else latents.index_select(2, latent_frames)


def frame_levels(levels: Tensor) -> Tensor:
    """Pixels [1, 3, F, H, W], already in 0..255, as frames [F, H, W, 3] uint8."""
    # TensorRT takes uint8 only as the very last step, so the layout changes before the cast.
    return levels[0].permute(1, 2, 3, 0).contiguous().to(torch.uint8)


def export_streaming(
    config: ModelConfig, step: nn.Module, past: Sequence[PastFrames], precision: Precision, *, marks_first: bool
) -> ExportedGraph:
    """Export ``step``, which maps keywords ``latents``, ``past``, ``first`` and ``latent_frames`` to frames and states.

    ``marks_first``: whether the graph has the input ``first``, 1 in the run that opens a stream, else 0.
    """
    inputs, outputs, states = tensor_table(config, past, precision, marks_first=marks_first)
    dtype = torch.float16 if precision == "float16" else torch.float32
    rows, columns = torch.export.Dim("latent_height", min=2, max=512), torch.export.Dim("latent_width", min=2, max=512)
    example: dict[str, Tensor | list[Tensor]] = {
        "latents": torch.zeros(1, config.autoencoder.latent_channels, config.cache.chunk, ROWS, COLUMNS),
        "past": [
            torch.zeros(
                state.arranged(ROWS * state.scale, COLUMNS * state.scale), dtype=torch.uint8 if state.coded else dtype
            )
            for state in past
        ],
    }
    dynamic: dict[str, object] = {
        "latents": {3: rows, 4: columns},
        "past": [
            dict(zip((1, 2) if state.coded else (3, 4), (state.scale * rows, state.scale * columns), strict=True))
            for state in past
        ],
    }
    given = {tensor.name for tensor in inputs}
    if "first" in given:
        example["first"], dynamic["first"] = torch.zeros(1), None
    if "latent_frames" in given:
        example["latent_frames"], dynamic["latent_frames"] = torch.arange(config.decoded_at_once), None
    return export_graph(step, example, dynamic, inputs, outputs, states)


def tensor_table(
    config: ModelConfig, past: Sequence[PastFrames], precision: Precision, *, marks_first: bool
) -> tuple[list[TensorEntry], list[TensorEntry], list[StateEntry]]:
    """Inputs, outputs and states of a decoder's graph."""
    patch_rows, patch_columns = config.denoiser.patch[1:]
    channels, chunk, count = config.autoencoder.latent_channels, config.cache.chunk, config.decoded_at_once
    latents = (1, channels, chunk, f"{patch_rows}*rows", f"{patch_columns}*columns")
    carried = [
        TensorEntry(
            name=f"past_{index}",
            dtype="uint8" if state.coded else precision,
            shape=state.arranged(f"{patch_rows * state.scale}*rows", f"{patch_columns * state.scale}*columns"),
        )
        for index, state in enumerate(past)
    ]
    inputs = [TensorEntry(name="latents", dtype="float32", shape=latents), *carried]
    if marks_first:
        inputs.append(TensorEntry(name="first", dtype="float32", shape=(1,)))
    if count < chunk:
        inputs.append(TensorEntry(name="latent_frames", dtype="int64", shape=(count,)))
    height, width = (f"{step}*{name}" for step, name in zip(config.size_step, ("rows", "columns"), strict=True))
    shape = (count * config.autoencoder.temporal_stride, height, width, 3)
    outputs = [
        TensorEntry(name="frames", dtype="uint8", shape=shape),
        *(tensor.model_copy(update={"name": f"{tensor.name}_out"}) for tensor in carried),
    ]
    states = [StateEntry(input=tensor.name, output=f"{tensor.name}_out", update="swap") for tensor in carried]
    return inputs, outputs, states
