"""Which exporter makes which component's graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rtgen.export.coded_decoder import export_coded_decoder
from rtgen.export.decoder import export_decoder
from rtgen.export.denoiser import export_denoiser
from rtgen.export.text_encoder import export_text_encoder
from rtgen.export.tiny_decoder import export_tiny_decoder

if TYPE_CHECKING:
    from torch import nn

    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import KVCacheFormat, Precision
    from rtgen.engine.manifest import Component
    from rtgen.export.graph import ExportedGraph
    from rtgen.export.ranges import DecoderRanges


def export_component(
    component: Component,
    config: ModelConfig,
    module: Any,
    precision: Precision,
    ring: KVCacheFormat | None = None,
    ranges: DecoderRanges | None = None,
) -> ExportedGraph:
    """The graph of ``module``, an instance of the component in ``precision``.

    ``ring``: the denoiser's, else floats; ``ranges``: of the decoder's convolutions, which then compute on codes.
    """
    match component:
        case "text_encoder":
            return export_text_encoder(config, module)
        case "denoiser":
            return export_denoiser(config, module, precision, ring)
        case "decoder":
            if ranges is not None:
                return export_coded_decoder(config, module, ranges)
            export = export_tiny_decoder if config.decoder == "taehv" else export_decoder
            return export(config, module, precision)


def weight_names(module: nn.Module, graph: ExportedGraph) -> dict[str, str]:
    """Initializer name to checkpoint name. The wrappers around a component prefix its parameters with ``model.``."""
    names = {}
    for name, _ in module.named_parameters():
        for initializer in (name, f"model.{name}"):
            if initializer in graph.model.graph.initializers:
                names[initializer] = name
    return names
