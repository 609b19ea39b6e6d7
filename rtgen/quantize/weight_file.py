"""A safetensors file whose table is known before its numbers are: they are written one tensor after the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path
from typing import BinaryIO, Final

from rtgen.models.safetensors_index import StoredTensor

CODES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8"}
ITEM_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}
ALIGNMENT: Final = 64
"""Bytes; the numbers start at a multiple of it."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written. Two INT4 codes are one ``uint8``: safetensors has no smaller unit."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


class WeightFile:
    """Planned tensors and where each will lie. The same plan and contents give the same bytes."""

    def __init__(self, path: Path, tensors: Sequence[PlannedTensor]) -> None:
        self.path = path
        # Wider types first: every tensor is then aligned to its type.
        ordered = sorted(tensors, key=lambda tensor: -ITEM_BYTES[tensor.dtype])
        self.planned = {tensor.name: tensor for tensor in ordered}
        if len(self.planned) < len(ordered):
            raise ValueError(f"two tensors of {path.name} have one name")
        ends = list(accumulate((tensor.length for tensor in ordered), initial=0))
        table = {
            tensor.name: {"dtype": CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": place}
            for tensor, place in zip(ordered, pairwise(ends), strict=True)
        }
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        self._header = len(text).to_bytes(8, "little") + text
        self.size = len(self._header) + ends[-1]
        self.offsets = {
            tensor.name: len(self._header) + begin for tensor, begin in zip(ordered, ends[:-1], strict=True)
        }

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor lies once it is written."""
        tensor = self.planned[name]
        return StoredTensor(self.path, self.offsets[name], tensor.length, tensor.dtype, tensor.shape)

    def create(self) -> BinaryIO:
        """The file with its header, open for :meth:`write`. Raises OSError, also when it exists."""
        stream = self.path.open("xb")
        stream.write(self._header)
        return stream

    def write(self, stream: BinaryIO, name: str, content: memoryview) -> None:
        """Put a tensor in its place. Raises ValueError for another number of bytes than planned."""
        if content.nbytes != self.planned[name].length:
            raise ValueError(f"{name} has {content.nbytes} bytes, not {self.planned[name].length}")
        stream.seek(self.offsets[name])
        stream.write(content)
