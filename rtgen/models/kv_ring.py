"""Self-attention through the K/V ring, as the streaming runtime runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rtgen.config.kv_cache import pool_rows
from rtgen.plugins import kv_cache_attention, quantized_kv_cache_attention

if TYPE_CHECKING:
    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import KVCacheFormat


class KVRing:
    """An :class:`rtgen.models.dit.Attend` over per-layer caches.

    ``keys`` and ``values`` hold one [1, heads, S, head_dim] tensor a layer; ``write_index`` and ``valid_length`` are
    [1] int64. After a pass they hold the updated caches.
    """

    def __init__(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], write_index: Tensor, valid_length: Tensor
    ) -> None:
        self.keys, self.values = list(keys), list(values)
        self.write_index, self.valid_length = write_index, valid_length
        self._attend = kv_cache_attention.torch_op()

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, self.keys[layer], self.values[layer] = self._attend(
            query, key, value, self.keys[layer], self.values[layer], self.write_index, self.valid_length
        )
        return output

    @property
    def tensors(self) -> list[Tensor]:
        """The caches in the order of the denoiser's table."""
        return [*self.keys, *self.values]


@dataclass(frozen=True)
class CodedRingSettings:
    """Attributes of ``rtgen::QuantizedKVCacheAttention``: bits of a number, rows of the pool, frames of the sink, share
    of frames that stay live, and of those that are recent enough to stay in any case."""

    bits: int
    pool: int
    sink: int
    keep: float
    recent: float

    @staticmethod
    def of(config: ModelConfig, ring: KVCacheFormat) -> CodedRingSettings:
        """Those of a model whose ring holds codes."""
        return CodedRingSettings(ring.bits, pool_rows(config, ring), config.cache.sink, ring.keep, ring.recent)


class CodedKVRing:
    """The same over a ring of codes; see ``rtgen.plugins.quantized_kv_cache_attention`` for the tensors.

    ``codes``, ``scales``, ``centres`` and ``pages`` hold one tensor a layer; ``frame_tokens`` is [1] int64. Queries,
    keys and values of any floating type are rounded to float16, and the output has their type.
    """

    def __init__(
        self,
        settings: CodedRingSettings,
        codes: Sequence[Tensor],
        scales: Sequence[Tensor],
        centres: Sequence[Tensor],
        pages: Sequence[Tensor],
        write_index: Tensor,
        valid_length: Tensor,
        frame_tokens: Tensor,
    ) -> None:
        self.states = (list(codes), list(scales), list(centres), list(pages))
        self.write_index, self.valid_length, self.frame_tokens = write_index, valid_length, frame_tokens
        self._attributes = asdict(settings)
        self._attend = quantized_kv_cache_attention.torch_op()

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, *updated = self._attend(
            *(tensor.to(torch.float16) for tensor in (query, key, value)),
            *(kind[layer] for kind in self.states),
            self.write_index,
            self.valid_length,
            self.frame_tokens,
            **self._attributes,
        )
        for kind, tensor in zip(self.states, updated, strict=True):
            kind[layer] = tensor
        return output.to(query.dtype)

    @property
    def tensors(self) -> list[Tensor]:
        """The ring in the order of the denoiser's table."""
        return [tensor for kind in self.states for tensor in kind]
