"""The text encoder's graph: token ids and mask to context vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rtgen.engine.manifest import TensorEntry
from rtgen.export.graph import ExportedGraph, export_graph
from rtgen.models.text_encoder import TextEncoder

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig


def tensor_table(config: ModelConfig) -> tuple[list[TensorEntry], list[TensorEntry]]:
    """Inputs and outputs of the text encoder's graph."""
    tokens = config.text_encoder.max_tokens
    inputs = [TensorEntry(name=name, dtype="int64", shape=(1, tokens)) for name in ("ids", "mask")]
    return inputs, [TensorEntry(name="context", dtype="float32", shape=(1, tokens, config.text_encoder.dim))]


def export_text_encoder(config: ModelConfig, model: TextEncoder) -> ExportedGraph:
    """Export ``model`` (already in the recipe's dtype); all shapes are fixed."""
    inputs, outputs = tensor_table(config)
    example = {tensor.name: torch.ones(1, config.text_encoder.max_tokens, dtype=torch.int64) for tensor in inputs}
    return export_graph(model, example, dict.fromkeys(example), inputs, outputs)
