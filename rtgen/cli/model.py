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
    missing = sorted({file["piece"] for file in files if file["needed"]} - _chosen(files))
    data |= {"files": files, "folder": str(folder), "missing": missing}
    return Result(data=data, lines=[*lines, "", *_explained(config, folder, files, missing)], quiet=lines)


def published_files(config: Any, folder: Path) -> list[dict[str, Any]]:
    """Every published form of every piece that the model may be made of, and what of it is in ``folder``."""
    from rtgen.build.weights import decoder_piece, piece_of
    from rtgen.models.checkpoints.layouts import ON_GITHUB, explain

    needed = {piece_of(component, config) for component in ("text_encoder", "denoiser", "decoder")} | {"tokenizer"}
    known = needed | {decoder_piece(decoder) for decoder in config.decoders}
    return [
        {
            "piece": row.piece,
            "needed": row.piece in needed,
            "host": "github.com" if row.repository in ON_GITHUB else "huggingface.co",
            "repository": row.repository,
            "path": row.path,
            "beside": row.beside,
            "found": None if row.found is None else str(row.found),
            "bytes": row.bytes,
            "chosen": row.chosen,
            "note": row.note,
        }
        for row in explain(folder, config.weights.published)
        if row.piece in known
    ]


def _explained(config: Any, folder: Path, files: list[dict[str, Any]], missing: list[str]) -> list[str]:
    """The files for people: what is needed, where it comes from, where it goes, what is there."""
    rows = [[_title(file), f"{file['host']}/{file['repository']}", file["path"], _state(file)] for file in files]
    example = next(file for file in files if file["piece"] == "denoiser")
    short, bare = example["repository"].partition("/")[2], example["path"].rstrip("/").rpartition("/")[2]
    places = dict.fromkeys(str(folder / place) for place in (example["path"], f"{short}/{example['path']}", bare))
    command = f"rtgen build --model {config.name} --weights {folder}"
    return [
        f"files, looked for in {folder} (--weights DIR names another folder)",
        *columns(["piece", "repository", "file", "found"], rows),
        "Of each piece one form is enough; the first that is found is taken.",
        f"A file goes to its path in the repository, with or without the repository's name before it, or to its bare "
        f"name: {' or '.join(places)}.",
        f"licence of the weights: {config.weights.licence}",
        f"missing: {', '.join(missing).replace('_', ' ')}" if missing else f"nothing is missing: {command}",
        *sorted({f"{file['path']}: {file['note']}" for file in files if file["chosen"] and file["note"]}),
    ]


def _title(file: dict[str, Any]) -> str:
    """A piece's name; decoders are told apart by the option that chooses them."""
    title = str(file["piece"]).replace("_", " ")
    if file["needed"]:
        return title
    return f"{title} (--decoder {'taehv' if file['piece'] == 'tiny_decoder' else 'vae'})"


def _state(file: dict[str, Any]) -> str:
    if file["found"] is None:
        return f"- (goes with {file['beside']})" if file["beside"] else "-"
    if file["chosen"]:
        return f"{bytes_text(file['bytes'])}, taken"
    return bytes_text(file["bytes"]) + (f", incomplete without {file['beside']}" if file["beside"] else "")


def _chosen(files: list[dict[str, Any]]) -> set[str]:
    return {file["piece"] for file in files if file["chosen"]}


model.add_command(show)
