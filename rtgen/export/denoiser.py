"""The denoiser's graph: one pass of the sampler, with the K/V ring as state.

One graph serves every pass. It mixes its own noisy latents, x = (1 - sigma) * clean + sigma * noise, and returns both
what it believes is clean (x - sigma * v) and what it believes is noise (x + (1 - sigma) * v):

* first pass: sigma 1, ``clean`` is ignored;
* later passes: ``clean`` is the last ``denoised``, ``noise`` is fresh (Self-Forcing) or the last ``noise_estimate``;
* clean pass: sigma 0; only the keys and values it writes matter.

So the sampler needs no arithmetic outside the engine. v is the rectified-flow velocity noise - clean.

``change`` is how far ``denoised`` lies from ``clean``: between the estimates of two passes, from the second pass on. It
is what adaptive steps are decided by (``rtgen.runtime.adaptive``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rtgen.config.recipe import KVCacheFormat
from rtgen.engine.manifest import StateEntry, TensorEntry
from rtgen.export.graph import ExportedGraph, export_graph
from rtgen.export.ring_states import RING_AXIS, has_ring_axis, ring_states, ring_tensors
from rtgen.models.dit import Attend, CausalVideoDiT
from rtgen.models.kv_ring import CodedKVRing, CodedRingSettings, KVRing
from rtgen.models.rope import token_rotation

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import Precision


class DenoiserPass(nn.Module):
    """A pass as described above; ``caches`` are the keys of all layers, then the values.

    Returns denoised and noise estimate (float32, shaped as ``clean``), change (float32 [1], the root mean square of
    denoised - clean in latent units, whatever the precision of the weights), keys and values.
    """

    def __init__(self, model: CausalVideoDiT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        clean: Tensor,
        noise: Tensor,
        sigma: Tensor,
        context: Tensor,
        rope_time: Tensor,
        rope_height: Tensor,
        rope_width: Tensor,
        write_index: Tensor,
        valid_length: Tensor,
        caches: list[Tensor],
    ) -> tuple[Tensor, ...]:
        layers = len(caches) // 2
        ring = KVRing(caches[:layers], caches[layers:], write_index, valid_length)
        tables = rope_time, rope_height, rope_width
        return *self.estimates(clean, noise, sigma, context, tables, ring), *ring.tensors

    def estimates(
        self,
        clean: Tensor,
        noise: Tensor,
        sigma: Tensor,
        context: Tensor,
        tables: tuple[Tensor, Tensor, Tensor],
        ring: Attend,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Denoised, noise estimate and change; ``tables`` are the rotary ones of time, height and width."""
        latents = (1 - sigma) * clean + sigma * noise
        timestep = (1000 * sigma).expand(1, clean.shape[2])
        velocity = self.model(latents, timestep, context, token_rotation(tables), ring)
        denoised = latents - sigma * velocity
        change = (denoised - clean).square().mean().sqrt().reshape(1)
        return denoised, latents + (1 - sigma) * velocity, change


class CodedDenoiserPass(DenoiserPass):
    """The same over a ring of codes: ``caches`` are the codes of all layers, then scales, centres and pages."""

    def __init__(self, model: CausalVideoDiT, settings: CodedRingSettings) -> None:
        super().__init__(model)
        self.settings = settings

    def forward(  # type: ignore[override]  # the graph has one input more
        self,
        clean: Tensor,
        noise: Tensor,
        sigma: Tensor,
        context: Tensor,
        rope_time: Tensor,
        rope_height: Tensor,
        rope_width: Tensor,
        write_index: Tensor,
        valid_length: Tensor,
        frame_tokens: Tensor,
        caches: list[Tensor],
    ) -> tuple[Tensor, ...]:
        layers = len(caches) // 4
        codes, scales, centres, pages = (caches[kind * layers : (kind + 1) * layers] for kind in range(4))
        ring = CodedKVRing(self.settings, codes, scales, centres, pages, write_index, valid_length, frame_tokens)
        tables = rope_time, rope_height, rope_width
        return *self.estimates(clean, noise, sigma, context, tables, ring), *ring.tensors


def tensor_table(
    config: ModelConfig, precision: Precision, ring: KVCacheFormat | None = None
) -> tuple[list[TensorEntry], list[TensorEntry], list[StateEntry]]:
    """Inputs, outputs and states of the denoiser's graph; without ``ring`` that one is in ``precision``."""
    ring = ring or KVCacheFormat()
    channels, chunk = config.autoencoder.latent_channels, config.cache.chunk
    time, height, width = config.denoiser.rope_split
    rows, columns = (
        f"{patch}*{name}" for patch, name in zip(config.denoiser.patch[1:], ("rows", "columns"), strict=True)
    )
    latents = (1, channels, chunk, rows, columns)
    caches = ring_tensors(config, precision, ring)
    updated, states = ring_states(caches)
    indices = ("write_index", "valid_length", *(("frame_tokens",) if ring.is_coded else ()))
    inputs = [
        TensorEntry(name="clean", dtype="float32", shape=latents),
        TensorEntry(name="noise", dtype="float32", shape=latents),
        TensorEntry(name="sigma", dtype="float32", shape=(1,)),
        TensorEntry(
            name="context", dtype="float32", shape=(1, config.text_encoder.max_tokens, config.text_encoder.dim)
        ),
        TensorEntry(name="rope_time", dtype="float32", shape=(chunk, time, 2)),
        TensorEntry(name="rope_height", dtype="float32", shape=("rows", height, 2)),
        TensorEntry(name="rope_width", dtype="float32", shape=("columns", width, 2)),
        *(TensorEntry(name=name, dtype="int64", shape=(1,)) for name in indices),
        *caches,
    ]
    outputs = [
        TensorEntry(name="denoised", dtype="float32", shape=latents),
        TensorEntry(name="noise_estimate", dtype="float32", shape=latents),
        TensorEntry(name="change", dtype="float32", shape=(1,)),
        *updated,
    ]
    return inputs, outputs, states


def export_denoiser(
    config: ModelConfig, model: CausalVideoDiT, precision: Precision, ring: KVCacheFormat | None = None
) -> ExportedGraph:
    """Export ``model`` (already in the recipe's dtype); ``ring`` as in :func:`tensor_table`."""
    inputs, outputs, states = tensor_table(config, precision, ring)
    sizes = {"rows": 4, "columns": 6}
    dtypes = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64, "int8": torch.int8}
    example = {
        tensor.name: torch.zeros([_size(dimension, sizes) for dimension in tensor.shape], dtype=dtypes[tensor.dtype])
        for tensor in inputs
    }
    example["valid_length"] += config.cache.chunk * 24
    caches = {state.input: example.pop(state.input) for state in states}
    rows, columns = torch.export.Dim("rows", min=2, max=256), torch.export.Dim("columns", min=2, max=256)
    length = torch.export.Dim("ring", min=2)
    height, width = config.denoiser.patch[1:]
    dynamic = dict.fromkeys(example) | {
        "clean": {3: height * rows, 4: width * columns},
        "noise": {3: height * rows, 4: width * columns},
        "rope_height": {0: rows},
        "rope_width": {0: columns},
        "caches": [{RING_AXIS: length} if has_ring_axis(name) else None for name in caches],
    }
    module = DenoiserPass(model)
    if ring is not None and ring.is_coded:
        example["frame_tokens"] += 24
        module = CodedDenoiserPass(model, CodedRingSettings.of(config, ring))
    return export_graph(module, {**example, "caches": [*caches.values()]}, dynamic, inputs, outputs, states)


def _size(dimension: int | str, sizes: dict[str, int]) -> int:
    from rtgen.engine.manifest import resolve

    return resolve(dimension, sizes)
