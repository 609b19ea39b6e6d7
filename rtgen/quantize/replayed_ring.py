"""What replayed passes see of past chunks: their keys and values as they are, or as a ring of codes keeps them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rtgen.engine.manifest import resolve_shape
from rtgen.export.ring_states import ring_tensors
from rtgen.models.kv_ring import CodedKVRing, CodedRingSettings
from rtgen.runtime.kv_cache import RingLayout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import KVCacheFormat
    from rtgen.quantize.device import Device


class ReplayedAttention(Protocol):
    """An :class:`rtgen.models.dit.Attend` for passes of one chunk, the batch. ``own`` keeps what the last of them, the
    clean pass, leaves in the ring."""

    own: tuple[Tensor, ...]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


class ReplayedRing(Protocol):
    """The ring of one block and one stream."""

    def attention(self, chunk: int) -> Callable[[], ReplayedAttention]:
        """Makes the attention of a chunk's passes: as often as they are to be run, with the same outcome."""

    def keep(self, chunk: int, own: tuple[Tensor, ...]) -> None:
        """Remember what a chunk left."""


class PastAttention:
    """A :class:`ReplayedAttention` over the keys and values of past chunks, [1, heads, T, head_dim], and one's own."""

    def __init__(self, past: Sequence[tuple[Tensor, ...]]) -> None:
        self._past = past
        self.own: tuple[Tensor, ...] = ()

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = (self._joined(index, own) for index, own in enumerate((key, value)))
        self.own = key[-1:].clone(), value[-1:].clone()
        return F.scaled_dot_product_attention(query, keys, values)

    def _joined(self, index: int, own: Tensor) -> Tensor:
        return torch.cat([*(part[index].expand(len(own), -1, -1, -1) for part in self._past), own], dim=2)


class RingOfFloats:
    """A :class:`ReplayedRing` of keys and values as they are."""

    def __init__(self, layout: RingLayout) -> None:
        self._layout = layout
        self._chunks: dict[int, tuple[Tensor, ...]] = {}

    def attention(self, chunk: int) -> Callable[[], PastAttention]:
        past = [self._chunks[number] for number in visible_chunks(self._layout, chunk)]
        return partial(PastAttention, past)

    def keep(self, chunk: int, own: tuple[Tensor, ...]) -> None:
        self._chunks[chunk] = own


class CodedAttention:
    """A :class:`ReplayedAttention` over codes, scales, centres and pages of a layer; each pass begins with the same."""

    def __init__(self, settings: CodedRingSettings, ring: tuple[Tensor, ...], place: tuple[Tensor, ...]) -> None:
        """``place``: write index, valid length and tokens of a latent frame, [1] int64."""
        self._settings, self._ring, self._place = settings, ring, place
        self.own: tuple[Tensor, ...] = ()

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        codes, scales, centres, pages = self._ring
        write_index, valid_length, frame_tokens = self._place
        outputs = []
        for one in range(len(query)):
            states = [codes], [scales], [centres], [pages]
            ring = CodedKVRing(self._settings, *states, write_index, valid_length, frame_tokens)
            outputs.append(ring(0, *(tensor[one : one + 1].contiguous() for tensor in (query, key, value))))
        self.own = tuple(ring.tensors)
        return torch.cat(outputs)


class RingOfCodes:
    """A :class:`ReplayedRing` as ``rtgen::QuantizedKVCacheAttention`` keeps it."""

    def __init__(
        self, config: ModelConfig, ring: KVCacheFormat, layout: RingLayout, sizes: Mapping[str, int], device: Device
    ) -> None:
        self._settings, self._layout, self._device = CodedRingSettings.of(config, ring), layout, device.name
        self._frame = sizes["rows"] * sizes["columns"]
        self._ring = tuple(tensors[0] for tensors in empty_ring(config, ring, sizes, device))

    def attention(self, chunk: int) -> Callable[[], CodedAttention]:
        numbers = self._layout.slot(chunk) * self._frame, self._layout.length(chunk) * self._frame, self._frame
        place = tuple(torch.tensor([number], device=self._device) for number in numbers)
        return partial(CodedAttention, self._settings, self._ring, place)

    def keep(self, chunk: int, own: tuple[Tensor, ...]) -> None:
        self._ring = own


def empty_ring(
    config: ModelConfig, ring: KVCacheFormat, sizes: Mapping[str, int], device: Device
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Codes, scales, centres and pages of all layers, zeros."""
    dtypes = {"int8": torch.int8, "float16": torch.float16, "int64": torch.int64}
    tensors = [
        torch.zeros(resolve_shape(entry.shape, sizes), dtype=dtypes[entry.dtype], device=device.name)
        for entry in ring_tensors(config, "float16", ring)
    ]
    layers = config.denoiser.layers
    codes, scales, centres, pages = (tensors[kind * layers : (kind + 1) * layers] for kind in range(4))
    return codes, scales, centres, pages


def visible_chunks(layout: RingLayout, chunk: int) -> tuple[int, ...]:
    """The past chunks whose keys and values are still in the ring when ``chunk`` has taken its slot."""
    slots: dict[int, int] = {}
    for number in range(chunk + 1):
        slots[layout.slot(number)] = number
    return tuple(sorted(number for number in slots.values() if number != chunk))
