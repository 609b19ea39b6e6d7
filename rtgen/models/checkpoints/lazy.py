"""Tensors that are still in a file: shape and place are known, numbers are read when asked for, in pieces.

Files are read, not mapped: the pages of a mapped file count as the process's memory, and a checkpoint may be larger
than that is allowed to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from rtgen.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""The types of weights that are read; tensors of other types are known, but not loaded."""


class LazyTensor(Protocol):
    """A tensor of a checkpoint, or one computed from tensors of checkpoints."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """A torch type without ``torch.``; only those of ``ITEM_BYTES`` can be loaded."""

    def load(self) -> Tensor:
        """The whole tensor. Raises CheckpointError when the file cannot be read."""

    def pieces(self, most_elements: int) -> Iterator[Tensor]:
        """The numbers in row-major order, in flat tensors of about ``most_elements`` or fewer; raises as ``load``."""


@dataclass(frozen=True)
class FileTensor:
    """A tensor as it lies in a file: row-major, unless ``stride`` (in elements, not negative) says otherwise."""

    file: Path
    offset: int
    """Bytes from the start of the file to the first element."""
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """Elements from the first to the last, both counted."""
        return span(self.shape, self.stride)

    def load(self) -> Tensor:
        with _opened(self.file) as stream:
            stored = self._read(stream, 0, self.span)
        return (
            stored.reshape(self.shape) if self.stride is None else stored.as_strided(self.shape, self.stride)
        ).contiguous()

    def pieces(self, most_elements: int) -> Iterator[Tensor]:
        if self.stride is not None:
            yield from self.load().flatten().split(most_elements)
            return
        total = prod(self.shape)
        with _opened(self.file) as stream:
            for begin in range(0, total, most_elements):
                yield self._read(stream, begin, min(most_elements, total - begin))

    def rows(self, begin: int) -> FileTensor:
        """The tensor without its first ``begin`` rows."""
        row = prod(self.shape[1:]) if self.stride is None else self.stride[0]
        offset = self.offset + begin * row * ITEM_BYTES[self.dtype]
        return replace(self, offset=offset, shape=(self.shape[0] - begin, *self.shape[1:]))

    def _read(self, stream: BinaryIO, begin: int, count: int) -> Tensor:
        import torch

        if self.dtype not in ITEM_BYTES:
            raise CheckpointError(f"{self.file.name}: {self.dtype} is not a type of weights")
        item = ITEM_BYTES[self.dtype]
        buffer = bytearray(count * item)
        try:
            stream.seek(self.offset + begin * item)
            length = stream.readinto(buffer)  # type: ignore[attr-defined]
        except OSError as error:
            raise CheckpointError(f"cannot read weights {self.file}: {error.strerror}") from error
        if length != len(buffer):
            raise CheckpointError(f"{self.file.name} became shorter while it was read")
        dtype = getattr(torch, self.dtype)
        return torch.frombuffer(buffer, dtype=dtype) if count else torch.empty(0, dtype=dtype)


def span(shape: tuple[int, ...], stride: tuple[int, ...] | None) -> int:
    """Elements from the first to the last of a tensor, both counted."""
    if stride is None or 0 in shape:
        return prod(shape)
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise CheckpointError(f"cannot read weights {file}: {error.strerror}") from error
