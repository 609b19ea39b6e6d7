"""What is in a store, found without reading more than manifests."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rtgen.engine.manifest import Manifest
from rtgen.engine.package import check_files, list_files, read_manifest
from rtgen.errors import PackageInvalidError
from rtgen.store.keys import KEY
from rtgen.store.stage import stage_problem

STAGES = ".stages"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class PackageInfo:
    """One package. ``size`` in bytes; ``mtime`` is its last use, in seconds since the epoch."""

    path: Path
    model: str
    gpu: str
    key: str
    size: int
    mtime: float
    problem: str | None
    """Why it cannot be used, as far as that shows without hashing; None: it looks sound."""


@dataclass(frozen=True)
class StageInfo:
    """One stage, such as the exported ONNX files; the fields are those of :class:`PackageInfo`."""

    path: Path
    kind: str
    key: str
    size: int
    mtime: float
    problem: str | None


def package_infos(root: Path) -> list[PackageInfo]:
    """All packages by model, GPU and key.

    Only folders named like a key count: the root may be a folder that holds other things too. Raises OSError.
    """
    found = []
    for model in _folders(root, _NAME):
        for gpu in _folders(model, _NAME):
            for path in _folders(gpu, KEY):
                with suppress(FileNotFoundError):  # removed by another process meanwhile
                    mtime = path.stat().st_mtime
                    size, problem = folder_size(path), _package_problem(path)
                    found.append(PackageInfo(path, model.name, gpu.name, path.name, size, mtime, problem))
    return found


def manifests(root: Path, model: str, gpu: str) -> list[Manifest]:
    """Of every package of a model and GPU, by key; those that cannot be read are left out. Raises OSError."""
    found = []
    for path in _folders(root / model / gpu, KEY):
        with suppress(PackageInvalidError):
            found.append(read_manifest(path))
    return found


def stage_infos(root: Path) -> list[StageInfo]:
    """All stages by kind and key. Raises OSError."""
    found = []
    for kind in _folders(root / STAGES, _NAME):
        for path in _folders(kind, KEY):
            with suppress(FileNotFoundError):
                mtime = path.stat().st_mtime
                found.append(StageInfo(path, kind.name, path.name, folder_size(path), mtime, stage_problem(path)))
    return found


def folder_size(folder: Path) -> int:
    """Bytes of the plain files under a folder."""
    return sum(size or 0 for size in list_files(folder).values())


def touch(folder: Path) -> None:
    """Note that an entry was used now. A store that cannot be written stays as it is."""
    with suppress(OSError):
        os.utime(folder)


def _package_problem(path: Path) -> str | None:
    try:
        check_files(path, read_manifest(path))
    except PackageInvalidError as error:
        return error.message.removeprefix(f"{path}: ")
    return None


def _folders(parent: Path, name: re.Pattern[str]) -> Iterator[Path]:
    try:
        children = sorted(parent.iterdir())
    except FileNotFoundError:
        return
    for child in children:
        if name.fullmatch(child.name) and child.is_dir() and not child.is_symlink():
            yield child
