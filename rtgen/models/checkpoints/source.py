"""One view of every form of checkpoint: a safetensors file, a folder of them, a torch file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from rtgen.errors import CheckpointError
from rtgen.models.checkpoints.lazy import FileTensor, LazyTensor
from rtgen.models.checkpoints.torch_file import Scalar, read_torch_file
from rtgen.models.safetensors_index import read_index

SAFETENSORS = ".safetensors"
INDEX = ".safetensors.index.json"
TORCH = (".pt", ".pth")
STEMS = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers name the weights in a folder."""
INDEX_LIMIT = 16 << 20
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a checkpoint by name. Torch files may hold dictionaries of tensors (``sections``) and values too."""

    path: Path
    tensors: Mapping[str, LazyTensor]
    sections: Mapping[str, Mapping[str, LazyTensor]] = field(default_factory=dict)
    values: Mapping[str, Scalar] = field(default_factory=dict)


def open_checkpoint(path: Path) -> Checkpoint:
    """The tensors of a file or folder; no weight is read.

    Raises CheckpointError for what is missing, truncated, inconsistent or not a checkpoint.
    """
    if path.is_dir():
        tensors: dict[str, LazyTensor] = {}
        for file in folder_files(path):
            if file.name.endswith(SAFETENSORS):
                tensors.update(_safetensors(file))
        return Checkpoint(path, tensors)
    _refuse_pointer(path)
    if path.suffix == SAFETENSORS:
        return Checkpoint(path, _safetensors(path))
    if path.suffix in TORCH:
        content = read_torch_file(path)
        return Checkpoint(path, content.tensors, content.sections, content.values)
    raise CheckpointError(f"{path.name} is not a checkpoint: rtgen reads {SAFETENSORS}, {' and '.join(TORCH)}")


def folder_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a diffusers or transformers folder, and its index first where it has one.

    Raises CheckpointError when there is none, or no telling which, or when the index names a file outside the folder.
    """
    for stem in STEMS:
        index, single = folder / f"{stem}{INDEX}", folder / f"{stem}{SAFETENSORS}"
        if index.is_file():
            return (index, *_shards(index))
        if single.is_file():
            return (single,)
    files = sorted(folder.glob(f"*{SAFETENSORS}"))
    if len(files) == 1:
        return (files[0],)
    found = ", ".join(file.name for file in files[:4])
    raise CheckpointError(
        f"{folder} holds several safetensors files and no index: {found}"
        if files
        else f"there are no safetensors files in {folder}"
    )


def _shards(index: Path) -> list[Path]:
    """The files an index names. Their tensors are checked against it."""
    places = _weight_map(index)
    files = []
    for name in sorted(set(places.values())):
        plain = PurePosixPath(name).name == name == PureWindowsPath(name).name
        if not plain or not name.endswith(SAFETENSORS):
            raise CheckpointError(f"{index.name} names {name!r}, which is not a safetensors file of its folder")
        file = index.parent / name
        listed = {tensor for tensor, place in places.items() if place == name}
        if differing := sorted(listed ^ _safetensors(file).keys()):
            raise CheckpointError(f"{index.name} and {name} disagree about {differing[0]!r}")
        files.append(file)
    return files


def _weight_map(index: Path) -> dict[str, str]:
    try:
        if index.stat().st_size > INDEX_LIMIT:
            raise CheckpointError(f"{index.name} is too large for an index")
        places = json.loads(index.read_bytes())["weight_map"]
    except OSError as error:
        raise CheckpointError(f"cannot read {index}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index.name} is not an index of safetensors files") from error
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index.name} is not an index of safetensors files")
    return places


def _safetensors(file: Path) -> dict[str, LazyTensor]:
    _refuse_pointer(file)
    return {
        name: FileTensor(tensor.file, tensor.offset, tensor.dtype, tensor.shape)
        for name, tensor in read_index(file).items()
    }


def _refuse_pointer(file: Path) -> None:
    """A clone without Git LFS leaves small text files where the weights belong."""
    try:
        with file.open("rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                raise CheckpointError(f"{file.name} is a Git LFS pointer, not the weights", hint="git lfs pull")
    except OSError as error:
        raise CheckpointError(f"cannot read weights {file}: {error.strerror}") from error
