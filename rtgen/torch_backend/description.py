"""``model.json`` of a torch package: what to build the modules from, in place of a graph or an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from rtgen.config.base import Section
from rtgen.config.json_file import read_section
from rtgen.config.model import ModelConfig
from rtgen.config.recipe import KVCacheFormat, Precision
from rtgen.errors import PackageInvalidError
from rtgen.quantize.result import LayerResult

if TYPE_CHECKING:
    from rtgen.engine.manifest import ModelEntry

FILE_NAME: Final = "model.json"
MAXIMUM_BYTES: Final = 16 << 20
"""Far above that of any model; a larger file is not read."""
_MOST_LAYERS: Final = 1000
"""Of a stranger's model, before modules are made."""


class Description(Section):
    """The architecture and how its numbers are represented. Everything in it is data."""

    model: ModelConfig
    precision: Precision
    """What the components on the device compute in."""
    kv_cache: KVCacheFormat = KVCacheFormat()
    layers: tuple[LayerResult, ...] = ()
    """The denoiser's matrices that the weight file holds as codes."""


def describe(
    model: ModelConfig, precision: Precision, kv_cache: KVCacheFormat, layers: tuple[LayerResult, ...]
) -> Description:
    """A description that tells nothing of the machine it was made on."""
    weights = model.weights.model_copy(update={"directory": ""})
    quantized = tuple(layer for layer in layers if layer.weights != "float")
    return Description(
        model=model.model_copy(update={"weights": weights}), precision=precision, kv_cache=kv_cache, layers=quantized
    )


def write_description(description: Description, folder: Path) -> None:
    """Write ``model.json`` into a package folder. Raises OSError."""
    text = description.model_dump_json(indent=1)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8", newline="\n")


def read_description(path: Path, entry: ModelEntry) -> Description:
    """Read and check ``model.json`` of a package whose manifest has ``entry``. Raises PackageInvalidError."""
    found = read_section(Description, path, MAXIMUM_BYTES, "does not describe a model")
    _check_sizes(path, found.model)
    _check_entry(path, found.model, entry)
    return found


def _check_sizes(path: Path, model: ModelConfig) -> None:
    counts = (model.text_encoder.layers, model.denoiser.layers, model.autoencoder.residual_blocks)
    if max(counts) > _MOST_LAYERS or len(model.autoencoder.multipliers) > _MOST_LAYERS:
        raise PackageInvalidError(f"{path} describes a model of more than {_MOST_LAYERS} layers")


def _check_entry(path: Path, model: ModelConfig, entry: ModelEntry) -> None:
    """The runtime goes by the manifest: both must mean one model."""
    described = {
        "chunk": model.cache.chunk,
        "window": model.cache.window,
        "sink": model.cache.sink,
        "latent_channels": model.autoencoder.latent_channels,
        "decoder": model.decoder,
        "size_step": model.size_step,
        "rope_split": model.denoiser.rope_split,
        "prompt_tokens": model.text_encoder.max_tokens,
    }
    different = sorted(name for name, value in described.items() if getattr(entry, name) != value)
    if different:
        raise PackageInvalidError(f"{path} and the manifest disagree about {', '.join(different)}", hint="rtgen build")
