"""Safetensors files written tensor by tensor, with no more than a piece of one in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from math import isfinite, prod
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Literal

from rtgen.errors import CheckpointError
from rtgen.models.checkpoints.lazy import ITEM_BYTES, LazyTensor
from rtgen.store.atomic import rename

if TYPE_CHECKING:
    from torch import Tensor

TargetType = Literal["float16", "float32", "stored"]
"""``stored``: each tensor stays as it is in the checkpoint."""

CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ALIGNMENT = 64
"""Bytes; the numbers start at a multiple of it."""
PIECE = 4 << 20
"""Elements that are read, converted and written at once."""
FLOAT16_LIMIT = 65520.0
"""The smallest magnitude that rounds to infinity."""


def split_files(
    wanted: Mapping[str, tuple[int, ...]], bytes_of: Callable[[str], int], most_bytes: int
) -> list[list[str]]:
    """Names of the tensors of each file: in their order, as many as fit, a larger one alone."""
    files: list[list[str]] = [[]]
    size = 0
    for name in wanted:
        if files[-1] and size + bytes_of(name) > most_bytes:
            files.append([])
            size = 0
        files[-1].append(name)
        size += bytes_of(name)
    return files


def target_type(tensor: LazyTensor, dtype: TargetType) -> str:
    """The type a tensor is written in."""
    return tensor.dtype if dtype == "stored" else dtype


def write_file(
    path: Path, tensors: Mapping[str, LazyTensor], *, dtype: TargetType, advance: Callable[[int], None]
) -> None:
    """Write one safetensors file. ``advance`` is told the bytes of each piece written.

    The same tensors give the same bytes. Raises CheckpointError for numbers that are not finite or that the type does
    not hold, and OSError.
    """
    # Wider types first: every tensor is then aligned to its type.
    order = sorted(tensors, key=lambda name: -ITEM_BYTES[target_type(tensors[name], dtype)])
    with path.open("xb") as file:
        file.write(_header({name: (target_type(tensors[name], dtype), tensors[name].shape) for name in order}))
        for name in order:
            for piece in tensors[name].pieces(PIECE):
                raw = _bytes(_converted(name, piece, target_type(tensors[name], dtype)))
                file.write(raw)
                advance(len(raw))


def write_together(paths: Sequence[Path], write: Callable[[int, Path], None]) -> None:
    """Write files under temporary names and rename them when all are finished: none is ever seen half-written."""
    with ExitStack() as unfinished:
        temporary = [path.with_name(f".{path.name}.{token_hex(4)}.tmp") for path in paths]
        for path in temporary:
            unfinished.callback(_remove, path)
        for index, path in enumerate(temporary):
            write(index, path)
        for path, final in zip(temporary, paths, strict=True):
            rename(path, final)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _header(entries: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The length and the JSON table of a safetensors file, padded to the alignment."""
    table = {}
    begin = 0
    for name, (dtype, shape) in entries.items():
        end = begin + prod(shape) * ITEM_BYTES[dtype]
        table[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _converted(name: str, piece: Tensor, dtype: str) -> Tensor:
    import torch

    if piece.numel():
        low, high = (float(value) for value in torch.aminmax(piece))
        if not (isfinite(low) and isfinite(high)):
            raise CheckpointError(f"{name} holds numbers that are not finite: the checkpoint is damaged")
        if dtype == "float16" and max(-low, high) >= FLOAT16_LIMIT:
            raise CheckpointError(
                f"{name} reaches {max(-low, high):.6g}, and float16 ends at 65504", hint="build with --recipe fp32"
            )
    return piece.to(getattr(torch, dtype))


def _bytes(piece: Tensor) -> memoryview:
    import torch

    return piece.contiguous().view(torch.uint8).numpy().data
