"""The stage between export and graphs for recipes with a ``[weights]`` section: weights as small integers.

A quantized component lies with all of its weights in the stage's folder; the others go on referring to the checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from rtgen.build.graphs import read_tables, write_tables

if TYPE_CHECKING:
    from rtgen.build.plan import BuildPlan
    from rtgen.progress import Progress

STAGE = "quantize"


def make_quantized(plan: BuildPlan, exported: Path, folder: Path, progress: Progress) -> None:
    """Fill a stage folder from that of the export. Raises UsageError or CheckpointError."""
    from rtgen.quantize.graph import quantize_graph

    settings = plan.recipe.weights
    assert settings is not None
    tables = read_tables(exported)
    for component, table in tables.items():
        if component not in settings.components:
            copyfile(exported / table.file, folder / table.file)
            continue
        position = settings.components.index(component)

        def advance(fraction: float, name: str, done: int = position) -> None:
            progress.update(STAGE, (done + fraction) / len(settings.components), name)

        file = quantize_graph(exported / table.file, plan.weights, folder, settings, advance)
        tables[component] = table.model_copy(update={"weights": (file,)})
    write_tables(folder, tables)
    progress.update(STAGE, 1.0)
