"""The tensor tables of a torch package's components: those of the exported graphs, with every state in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from rtgen.engine.manifest import Component, StateEntry, TensorEntry
from rtgen.export import decoder, denoiser, streaming, text_encoder, tiny_decoder
from rtgen.models.registry import create

if TYPE_CHECKING:
    from rtgen.engine.manifest import ComponentEntry
    from rtgen.torch_backend.description import Description


class Table(NamedTuple):
    """Inputs, outputs and states of a component."""

    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    states: tuple[StateEntry, ...]

    @staticmethod
    def of(entry: ComponentEntry) -> Table:
        """The table that a manifest has."""
        return Table(entry.inputs, entry.outputs, entry.states)


def table_of(component: Component, description: Description) -> Table:
    """The table that a component's module has. No weights are needed."""
    config = description.model
    match component:
        case "text_encoder":
            inputs, outputs = text_encoder.tensor_table(config)
            return Table(tuple(inputs), tuple(outputs), ())
        case "denoiser":
            inputs, outputs, states = denoiser.tensor_table(config, description.precision, description.kv_cache)
        case "decoder":
            inputs, outputs, states = _decoder_table(description)
    # All of an execution's reads come before it writes a state, so one buffer is enough.
    in_place = tuple(state.model_copy(update={"update": "in_place"}) for state in states)
    return Table(tuple(inputs), tuple(outputs), in_place)


def _decoder_table(description: Description) -> tuple[list[TensorEntry], list[TensorEntry], list[StateEntry]]:
    config = description.model
    with torch.device("meta"):  # shapes only
        module = create("decoder", config)
        if config.decoder == "taehv":
            past, marks_first = tiny_decoder.past_frames(config, module), False  # type: ignore[arg-type]
        else:
            past = decoder.past_frames(config, module)  # type: ignore[arg-type]
            marks_first = config.autoencoder.single_first_frame
    return streaming.tensor_table(config, past, description.precision, marks_first=marks_first)
