"""The K/V ring updated in place, with nothing read back from the device: what a CUDA graph can hold."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.plugins.quantized_kv_cache_attention import attend_in_place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rtgen.models.kv_ring import CodedRingSettings


class InPlaceRing:
    """An :class:`rtgen.models.dit.Attend` over keys and values as they are, one [1, heads, S, head_dim] a layer.

    Where a chunk is written is a number on the device. How much of the ring is valid is one on the host, since it
    decides the shape of the attention: kernels without a mask are the fast ones, and only a handful of lengths occur.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], write_index: Tensor, valid: int) -> None:
        """``write_index`` is [1] int64 on the device."""
        self._keys, self._values = keys, values
        self._write_index, self._valid = write_index, valid
        self._rows: Tensor | None = None

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self._keys[layer], self._values[layer]
        if self._rows is None:  # the same for all layers
            self._rows = self._write_index + torch.arange(key.shape[2], device=key.device)
        keys.index_copy_(2, self._rows, key)
        values.index_copy_(2, self._rows, value)
        return F.scaled_dot_product_attention(query, keys[:, :, : self._valid], values[:, :, : self._valid])


class InPlaceCodedRing:
    """The same over a ring of codes: ``rtgen::QuantizedKVCacheAttention``, whose numbers all stay on the device."""

    def __init__(
        self,
        settings: CodedRingSettings,
        codes: Sequence[Tensor],
        scales: Sequence[Tensor],
        centres: Sequence[Tensor],
        pages: Sequence[Tensor],
        numbers: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """``numbers``: write index, valid length and tokens of a latent frame, [1] int64 each."""
        self._attend: Callable[..., Tensor] = partial(attend_in_place, **asdict(settings))
        self._states, self._numbers = (codes, scales, centres, pages), numbers

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        codes, scales, centres, pages = (tensors[layer] for tensors in self._states)
        halves = (tensor.to(torch.float16).contiguous() for tensor in (query, key, value))
        output = self._attend(*halves, codes, scales, centres, pages, *self._numbers)
        return output.to(query.dtype)
