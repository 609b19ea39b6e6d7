"""``rtgen model ls|show``; ``show`` also tells which published files a model is made of, and what is found of them."""

from pathlib import Path
from typing import Any

import click

from rtgen.cli.catalogue import KINDS, catalogue
from rtgen.cli.group import command
from rtgen.cli.options import names
from rtgen.cli.output import Output, Result
from rtgen.cli.table import bytes_text, columns, settings

model = catalogue("model", "List and show the models.")


@command("show")
@click.argument("name", shell_complete=names("model"))
@click.option("--weights", metavar="DIR", type=click.Path(path_type=Path), help="Look for the files here.")
def show(output: Output, name: str, weights: Path | None) -> Result:
    """Show all settings of a model, and its files."""
    config = KINDS["model"].load(name)
    data = config.model_dump(mode="json")
    lines = settings(data)
    if config.weights.published is None:
        return Result(data=data, lines=lines, quiet=lines)
    from rtgen.build.plan import weights_directory

    folder = weights or weights_directory(config)
    files = published_files(config, folder)
    rows = [[file["piece"], file["repository"], file["path"], _state(file)] for file in files]
    heading = ["", f"files, in {folder} (or in --weights DIR); of each piece the first that is found is taken"]
    table = columns(["piece", "repository", "file", "found"], rows)
    notes = sorted({f"{file['path']}: {file['note']}" for file in files if file["chosen"] and file["note"]})
    return Result(data={**data, "files": files}, lines=[*lines, *heading, *table, *notes], quiet=lines)


def published_files(config: Any, folder: Path) -> list[dict[str, Any]]:
    """Every published form of every piece that the model needs, and what of it is in ``folder``."""
    from rtgen.build.weights import piece_of
    from rtgen.models.checkpoints.layouts import explain

    needed = {piece_of(component, config) for component in ("text_encoder", "denoiser", "decoder")} | {"tokenizer"}
    return [
        {
            "piece": row.piece,
            "repository": row.repository,
            "path": row.path,
            "found": None if row.found is None else str(row.found),
            "bytes": row.bytes,
            "chosen": row.chosen,
            "note": row.note,
        }
        for row in explain(folder, config.weights.published)
        if row.piece in needed
    ]


def _state(file: dict[str, Any]) -> str:
    if file["found"] is None:
        return "-"
    return f"{bytes_text(file['bytes'])}{', taken' if file['chosen'] else ''}"


model.add_command(show)
