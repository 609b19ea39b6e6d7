"""Cubins as files: ``kernels/<name>.cubin`` in a package."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

FOLDER: Final = "kernels"
ENDING: Final = ".cubin"


def write_cubin(folder: Path, name: str, code: bytes) -> None:
    """Write one into ``folder``, which is made. ``name`` is :attr:`rtgen.plugins.base.KernelSource.name`."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}{ENDING}").write_bytes(code)


def read_cubins(files: Iterable[Path]) -> dict[str, bytes]:
    """Machine code by name; files with another ending are passed over."""
    return {file.stem: file.read_bytes() for file in files if file.suffix == ENDING}
