"""Where the weights of a component lie that its graph refers to by file name.

Those of a quantized component are all beside its graph, in every stage. All others are in the checkpoint's folder.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from rtgen.models.registry import checkpoint_index

if TYPE_CHECKING:
    from rtgen.engine.manifest import ComponentEntry


def are_beside(table: ComponentEntry, graphs: Path) -> bool:
    """Whether a component's weights are in the stage folder ``graphs``."""
    return bool(table.weights) and all((graphs / name).is_file() for name in table.weights)


def weights_folder(table: ComponentEntry, graphs: Path, checkpoint: Path) -> Path:
    """The folder with all weight files of a component whose graph is in the stage folder ``graphs``."""
    return graphs if are_beside(table, graphs) else checkpoint


def pass_on(table: ComponentEntry, stage: Path, folder: Path) -> None:
    """Give the next stage the weights that are beside the graph, if they are. Raises OSError."""
    if not are_beside(table, stage):
        return
    for name in table.weights:
        try:
            os.link(stage / name, folder / name)  # the numbers are on the disk once
        except OSError:  # a file system without hard links
            copyfile(stage / name, folder / name)


def loaded_bytes(table: ComponentEntry, graphs: Path, checkpoint: Path, item: int) -> int:
    """Bytes of a component's weights once loaded: as quantized, else ``item`` bytes each however they are stored."""
    if are_beside(table, graphs):
        return sum((graphs / name).stat().st_size for name in table.weights)
    index = checkpoint_index([checkpoint / name for name in table.weights])
    return sum(prod(tensor.shape) for tensor in index.values()) * item
