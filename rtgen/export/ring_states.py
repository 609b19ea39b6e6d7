"""The tensors of the K/V ring in the denoiser's table: floats, or codes with their scales, centres and pages.

A ring of codes has, for each layer, keys and values in one tensor of codes, one scale for each token and head, one
vector for each head that was subtracted from all of them, and a table of where each frame's tokens lie
(``rtgen.plugins.quantized_kv_cache_attention``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtgen.config.kv_cache import page_entries, pool_rows, ring_frames
from rtgen.engine.manifest import ComponentEntry, StateEntry, TensorEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import KVCacheFormat, Precision

CODES, SCALES, CENTRES, PAGES = "kv_codes", "kv_scales", "kv_centres", "kv_pages"
RING_AXIS = 2
"""The axis of tokens in each tensor of the ring but centres and pages."""


def ring_tensors(config: ModelConfig, precision: Precision, ring: KVCacheFormat) -> list[TensorEntry]:
    """The ring's tensors in graph order: all layers of the first kind, then all of the next."""
    pool, rows = pool_rows(config, ring), f"{ring_frames(config, ring)}*rows*columns"
    heads, width = config.denoiser.heads, config.denoiser.head_dim
    if not ring.is_coded:
        shape = (1, heads, rows, width)
        return [
            TensorEntry(name=name, dtype=precision, shape=shape) for name in _names(config, "key_cache", "value_cache")
        ]
    length = f"{rows}+{pool}" if pool else rows
    kinds = (
        TensorEntry(name=CODES, dtype="int8", shape=(2, heads, length, width * ring.bits // 8)),
        TensorEntry(name=SCALES, dtype="float16", shape=(2, heads, length)),
        TensorEntry(name=CENTRES, dtype="float16", shape=(2, heads, width)),
        TensorEntry(name=PAGES, dtype="int64", shape=(page_entries(config, ring),)),
    )
    return [kind.model_copy(update={"name": name}) for kind in kinds for name in _names(config, kind.name)]


def ring_states(tensors: Sequence[TensorEntry]) -> tuple[list[TensorEntry], list[StateEntry]]:
    """The outputs that update the ring in place, and the pairs."""
    outputs = [tensor.model_copy(update={"name": f"{tensor.name}_out"}) for tensor in tensors]
    states = [StateEntry(input=tensor.name, output=f"{tensor.name}_out", update="in_place") for tensor in tensors]
    return outputs, states


def has_ring_axis(name: str) -> bool:
    """Whether a tensor of the ring has a row for each token."""
    return not name.startswith((CENTRES, PAGES))


def with_ring(table: ComponentEntry, length: int) -> ComponentEntry:
    """The denoiser's table with the ring's rows as a number."""
    ring = {name for state in table.states for name in (state.input, state.output) if has_ring_axis(name)}

    def fixed(tensors: tuple[TensorEntry, ...]) -> tuple[TensorEntry, ...]:
        return tuple(
            tensor.model_copy(update={"shape": (*tensor.shape[:RING_AXIS], length, *tensor.shape[RING_AXIS + 1 :])})
            if tensor.name in ring
            else tensor
            for tensor in tensors
        )

    return table.model_copy(update={"inputs": fixed(table.inputs), "outputs": fixed(table.outputs)})


def _names(config: ModelConfig, *kinds: str) -> list[str]:
    return [f"{kind}_{layer}" for kind in kinds for layer in range(config.denoiser.layers)]
