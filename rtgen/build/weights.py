"""Published checkpoints: found in the user's folder, and converted once into a stage of the store.

The stage looks like the weights of a bundled model: component.0.safetensors … in float16 and ``tokenizer.json``.
Nothing after it knows where the weights came from.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import rtgen
from rtgen.models.checkpoints.layouts import Piece, Source, find_sources
from rtgen.models.registry import COMPONENTS, create
from rtgen.store.keys import JsonValue, fields_digest, tree_digest

if TYPE_CHECKING:
    from rtgen.config.model import Decoder, ModelConfig
    from rtgen.engine.manifest import Component
    from rtgen.progress import Progress
    from rtgen.store.store import Store


def piece_of(component: Component, config: ModelConfig) -> Piece:
    """The published piece that a component is read from."""
    return decoder_piece(config.decoder) if component == "decoder" else component


def decoder_piece(decoder: Decoder) -> Piece:
    """The published piece of a decoder."""
    return "tiny_decoder" if decoder == "taehv" else "decoder"


def published_sources(config: ModelConfig, folder: Path) -> dict[str, Source]:
    """The files of every component and of the tokenizer. Raises CheckpointError that names what is missing."""
    assert config.weights.published is not None
    family = config.weights.published
    sources: dict[str, Source] = {}
    for component in COMPONENTS:
        sources[component] = find_sources(piece_of(component, config), folder, family)
    return {**sources, "tokenizer": find_sources("tokenizer", folder, family)}


def published_key(sources: dict[str, Source], store: Store) -> str:
    """The key of the stage: the bytes of all files, which parts of them are taken, and the code that reads them."""
    fields: dict[str, JsonValue] = {"sources": _reader_sources()}
    for name, source in sources.items():
        fields[name] = {
            "files": [store.file_digest(file) for file in source.files],
            "sections": source.candidate.sections,
            "adapter_alpha": source.candidate.adapter_alpha,
        }
    return fields_digest(fields)


def convert_published(config: ModelConfig, sources: dict[str, Source], folder: Path, progress: Progress) -> None:
    """Fill a stage folder. Raises CheckpointError for files that do not fit, or are not what they claim to be."""
    import torch

    from rtgen.models.checkpoints.convert import check_source, convert

    wanted: dict[Component, dict[str, tuple[int, ...]]] = {}
    for component in COMPONENTS:
        with torch.device("meta"):
            module = create(component, config)
        wanted[component] = {name: tuple(value.shape) for name, value in module.named_parameters()}
        check_source(sources[component], wanted[component])  # all of them, before the first is written
    for component in COMPONENTS:
        source = sources[component]
        if source.note:
            progress.note(f"{source.path.name}: {source.note}")
        convert(component, wanted[component], source, folder, dtype="float16", progress=progress)
    shutil.copyfile(sources["tokenizer"].path, folder / config.weights.tokenizer)


@cache
def _reader_sources() -> str:
    return tree_digest(Path(rtgen.__file__).parent / "models" / "checkpoints")
