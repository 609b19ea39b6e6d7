"""Where each tensor of a safetensors file lies, without reading the tensors.

The format: eight bytes of header length (little endian), a JSON header, then raw data. Files come from strangers, so
every number is checked against the file's size before anything is used.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

from rtgen.errors import CheckpointError

HEADER_LIMIT = 100_000_000
"""Bytes; the limit of the reference implementation."""
DTYPES = {"F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
CODES = {"U8": ("uint8", 1)}
"""What a file of quantized weights has besides."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor inside a file: ``length`` bytes from ``offset``."""

    file: Path
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


def read_index(file: Path, *, codes: bool = False) -> dict[str, StoredTensor]:
    """Tensors of a safetensors file by name; bytes are accepted only where ``codes`` are expected.

    Raises CheckpointError for a file that is missing, truncated, inconsistent or not safetensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(HEADER_LIMIT, size - 8):
                raise CheckpointError(f"{file.name} is not a safetensors file, or is truncated")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read weights {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.name} is not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file.name} is not a safetensors file: its header is not a table")
    header.pop("__metadata__", None)
    dtypes = DTYPES | CODES if codes else DTYPES
    index = {name: _entry(file, name, entry, dtypes, start=8 + length, size=size) for name, entry in header.items()}
    _check_disjoint(file, index)
    return index


def _entry(
    file: Path, name: str, entry: object, dtypes: Mapping[str, tuple[str, int]], *, start: int, size: int
) -> StoredTensor:
    try:
        dtype, item = dtypes[entry["dtype"]]  # type: ignore[index]
        shape = tuple(int(dimension) for dimension in entry["shape"])  # type: ignore[index]
        begin, end = (int(offset) for offset in entry["data_offsets"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file.name}: the entry of {name!r} is not one rtgen can read") from error
    if not 0 <= begin <= end <= size - start:
        raise CheckpointError(f"{file.name} is truncated: {name!r} ends at {start + end} of {size} bytes")
    if min(shape, default=1) < 0 or prod(shape) * item != end - begin:
        raise CheckpointError(f"{file.name}: {name!r} has {end - begin} bytes for a {dtype} tensor of shape {shape}")
    return StoredTensor(file, start + begin, end - begin, dtype, shape)


def _check_disjoint(file: Path, index: dict[str, StoredTensor]) -> None:
    ordered = sorted(index.items(), key=lambda item: item[1].offset)
    for (name, tensor), (other, following) in pairwise(ordered):
        if tensor.offset + tensor.length > following.offset:
            raise CheckpointError(f"{file.name}: {name!r} and {other!r} overlap")
