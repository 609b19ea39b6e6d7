"""The stage between export and graphs for recipes that quantize: the denoiser's graph refers to codes and scales.

Its weights, and what was decided about them, lie beside it; the other components go on referring to the checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from rtgen.build.graphs import read_tables, write_tables

if TYPE_CHECKING:
    from rtgen.progress import Progress

STAGE = "quantize"


def make_quantized(codes: Path, exported: Path, folder: Path, progress: Progress) -> None:
    """Fill a stage folder from those of the codes and of the export. Raises CheckpointError, OSError."""
    from rtgen.quantize.graph import write_graph
    from rtgen.quantize.output import COMPONENT, WEIGHTS
    from rtgen.quantize.result import FILE_NAME, read_result

    progress.update(STAGE, 0.0)
    tables = read_tables(exported)
    for name in (WEIGHTS, FILE_NAME):
        copyfile(codes / name, folder / name)  # onnx-ir reads scales, and refuses files with several hard links
    for component, table in tables.items():
        if component == COMPONENT:
            write_graph(exported / table.file, folder / WEIGHTS, read_result(codes), folder)
            tables[component] = table.model_copy(update={"weights": (WEIGHTS,)})
        else:
            copyfile(exported / table.file, folder / table.file)
    write_tables(folder, tables)
    progress.update(STAGE, 1.0)
