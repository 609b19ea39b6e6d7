"""The index of a ``.pt`` or ``.pth`` file: nothing in it is run, and no weight is read.

Such a file is a zip archive with a pickle that describes tensors, and one entry of raw numbers a storage. The pickle
is read by ``torch.load`` with ``weights_only=True`` onto the meta device, which gives shapes and places and allocates
nothing. Files come from strangers, so every place is then checked against the archive's own table.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtgen.errors import CheckpointError
from rtgen.models.checkpoints.lazy import FileTensor, span

if TYPE_CHECKING:
    from torch import Tensor

PICKLE_LIMIT = 64 << 20
"""Bytes of the description; that of the largest published file read here is under one megabyte."""
ENTRY_LIMIT = 100_000
LOCAL_HEADER = 30
AGAIN = "download it again, and compare its size with the publisher's page"

Scalar = bool | int | float | str | None


@dataclass
class TorchFile:
    """What the dictionary in a file holds: tensors, dictionaries of tensors, and plain values."""

    tensors: dict[str, FileTensor] = field(default_factory=dict)
    sections: dict[str, dict[str, FileTensor]] = field(default_factory=dict)
    values: dict[str, Scalar] = field(default_factory=dict)


def read_torch_file(file: Path) -> TorchFile:
    """The index of a file written by ``torch.save``.

    Raises CheckpointError for a file that is missing, truncated, of the old pickle format, or holds anything but
    dictionaries of tensors and plain values.
    """
    try:
        records = _records(file)
        content = _load(file)
    except OSError as error:
        raise CheckpointError(f"cannot read weights {file}: {error.strerror}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file.name} holds a {type(content).__name__} instead of a table of tensors")
    found = TorchFile()
    for name, value in content.items():
        if isinstance(value, Mapping) and isinstance(name, str):
            found.sections[name] = {_name(file, key): _place(file, key, item, records) for key, item in value.items()}
        elif isinstance(value, Scalar):
            found.values[_name(file, name)] = value
        else:
            found.tensors[_name(file, name)] = _place(file, name, value, records)
    return found


def _records(file: Path) -> dict[int, int]:
    """Size of each raw entry of the archive by where its bytes begin."""
    with file.open("rb") as stream:
        start = stream.read(4)
        if start[:1] == b"\x80":
            raise CheckpointError(
                f"{file.name} is of the old torch format, whose pickles can run programs; only zip files are read",
                hint="load it where you trust it and save it again with torch.save, or as safetensors",
            )
        if start != b"PK\x03\x04":
            raise CheckpointError(f"{file.name} is not a torch checkpoint", hint=AGAIN)
        size = file.stat().st_size
        try:
            with zipfile.ZipFile(stream) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise CheckpointError(f"{file.name} is truncated or damaged: {error}", hint=AGAIN) from error
        _check_entries(file, entries)
        records = {}
        for entry in entries:
            stream.seek(entry.header_offset)
            header = stream.read(LOCAL_HEADER)
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            begin = entry.header_offset + LOCAL_HEADER + lengths
            if header[:4] != b"PK\x03\x04" or begin + entry.file_size > size:
                raise CheckpointError(f"{file.name} is truncated or damaged at {entry.filename!r}", hint=AGAIN)
            records[begin] = entry.file_size
    return records


def _check_entries(file: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Only what ``torch.save`` writes: stored entries in one folder, and a short description among them."""
    if len(entries) > ENTRY_LIMIT:
        raise CheckpointError(f"{file.name} has {len(entries)} entries, more than any checkpoint")
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1]
    if packed:
        raise CheckpointError(f"{file.name} is a compressed archive and not a torch checkpoint: {packed[0]!r}")
    names = {entry.filename.partition("/")[2]: entry.file_size for entry in entries}
    if "data.pkl" not in names or "constants.pkl" in names:
        raise CheckpointError(f"{file.name} is a zip archive, but not one of weights")
    if names["data.pkl"] > PICKLE_LIMIT:
        raise CheckpointError(
            f"{file.name} describes its tensors in {names['data.pkl']} bytes, more than any checkpoint"
        )


def _load(file: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of odd pickles, which the checks here judge
            return torch.load(file, map_location="meta", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        reason = str(error)
        if "Unsupported" in reason or "GLOBAL" in reason:
            raise CheckpointError(
                f"{file.name} holds other Python objects than tensors, and they are not loaded",
                hint="only dictionaries of tensors are read: save the state_dict alone",
            ) from error
        raise CheckpointError(f"{file.name} is damaged: {reason.splitlines()[0] if reason else error!r}") from error


def _name(file: Path, name: object) -> str:
    if not isinstance(name, str):
        raise CheckpointError(f"{file.name}: {name!r} is not the name of a tensor")
    return name


def _place(file: Path, name: object, value: object, records: Mapping[int, int]) -> FileTensor:
    """Where a tensor lies, after checking that it lies inside one entry of the archive."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{file.name}: {name!r} is a {type(value).__name__} and not a tensor")
    if value.layout != torch.strided:
        raise CheckpointError(f"{file.name}: {name!r} is a {value.layout} tensor, and weights are dense")
    begin = getattr(value.untyped_storage(), "_checkpoint_offset", -1)
    shape, first = tuple(value.shape), int(value.storage_offset())
    stride = None if value.is_contiguous() else tuple(value.stride())
    end = (first + span(shape, stride)) * value.element_size()
    if end > records.get(begin, -1) or _overlaps(value):
        raise CheckpointError(f"{file.name} is damaged: {name!r} does not lie in it", hint=AGAIN)
    dtype = str(value.dtype).removeprefix("torch.")
    return FileTensor(file, begin + first * value.element_size(), dtype, shape, stride)


def _overlaps(value: Tensor) -> bool:
    """Whether elements share their place, as they do in an expanded tensor: it would grow when it is loaded."""
    return value.numel() > span(tuple(value.shape), tuple(value.stride()))
