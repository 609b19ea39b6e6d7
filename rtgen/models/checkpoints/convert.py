"""From a published checkpoint to rtgen's own layout: safetensors files whose names are those of our modules."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from rtgen.errors import CheckpointError
from rtgen.models.checkpoints.layouts import Source
from rtgen.models.checkpoints.lazy import ITEM_BYTES, LazyTensor
from rtgen.models.checkpoints.lora import merged
from rtgen.models.checkpoints.source import open_checkpoint
from rtgen.models.checkpoints.tiny_decoder import tiny_decoder_tensors
from rtgen.models.checkpoints.umt5 import text_encoder_tensors
from rtgen.models.checkpoints.wan_dit import SECTIONS, denoiser_tensors
from rtgen.models.checkpoints.wan_vae import decoder_tensors
from rtgen.models.checkpoints.writer import TargetType, split_files, target_type, write_file, write_together
from rtgen.progress import Progress

MOST_BYTES = 2_000_000_000
"""Of one file, unless the caller says otherwise. 32-bit tools and file systems end at twice that."""
SHOWN = 4


class CheckpointMismatch(CheckpointError):
    """A checkpoint of another model. ``problems`` lists every difference; the message gives the first few."""

    def __init__(self, source: Path, component: str, problems: list[str]) -> None:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        super().__init__(f"{source.name} does not fit the {component}: {'; '.join(problems[:SHOWN])}{more}")
        self.problems = tuple(problems)


def source_tensors(source: Source, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
    """The tensors of a source under our names; nothing is read. Raises CheckpointError."""
    checkpoint = open_checkpoint(source.path)
    match source.piece:
        case "text_encoder":
            return text_encoder_tensors(checkpoint)
        case "decoder":
            return decoder_tensors(checkpoint, wanted)
        case "tiny_decoder":
            return tiny_decoder_tensors(checkpoint, wanted)
        case "denoiser":
            tensors = denoiser_tensors(checkpoint, source.candidate.sections or SECTIONS)
            if source.adapter is None:
                return tensors
            return merged(tensors, source.adapter, alpha=source.candidate.adapter_alpha)
    raise ValueError(f"a {source.piece} has no tensors")


def check_source(source: Source, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
    """:func:`source_tensors` in the order of ``wanted``, if the two agree.

    Raises CheckpointMismatch that lists what is missing, surplus or misshapen.
    """
    tensors = source_tensors(source, wanted)
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"surplus {name!r}" for name in sorted(tensors.keys() - wanted.keys())]
    for name, shape in wanted.items():
        if name in tensors and tensors[name].shape != tuple(shape):
            problems.append(f"{name} is {list(tensors[name].shape)} instead of {list(shape)}")
        elif name in tensors and tensors[name].dtype not in ITEM_BYTES:
            problems.append(f"{name} is of type {tensors[name].dtype}")
    if problems:
        raise CheckpointMismatch(source.path, source.piece.replace("_", " "), problems)
    return {name: tensors[name] for name in wanted}


def convert(
    component: str,
    wanted: Mapping[str, tuple[int, ...]],
    source: Source,
    target: Path,
    *,
    dtype: TargetType,
    most_bytes: int = MOST_BYTES,
    progress: Progress,
) -> list[Path]:
    """Write a source's tensors to ``target`` as component.0.safetensors, component.1.safetensors …

    ``wanted``: shapes of the module's parameters by name, in the order they are to lie in. ``most_bytes`` of a file;
    a tensor larger than that gets a file of its own. Memory stays at a few pieces of a tensor, whatever its size
    (and one matrix with its adapter). All files appear together, or none.
    Raises CheckpointError before anything is written when the source does not fit, and CheckpointError during it for
    numbers that are not finite or that ``dtype`` does not hold; OSError when the disk is full.
    """
    tensors = check_source(source, wanted)
    sizes = {name: prod(tensor.shape) * ITEM_BYTES[target_type(tensor, dtype)] for name, tensor in tensors.items()}
    files = split_files(wanted, sizes.__getitem__, most_bytes)
    paths = [target / f"{component}.{index}.safetensors" for index in range(len(files))]
    stage, total, done = f"weights: {component.replace('_', ' ')}", max(1, sum(sizes.values())), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress.update(stage, done / total, source.path.name)

    def write(index: int, path: Path) -> None:
        write_file(path, {name: tensors[name] for name in files[index]}, dtype=dtype, advance=advance)

    progress.update(stage, 0.0, source.path.name)
    target.mkdir(parents=True, exist_ok=True)
    write_together(paths, write)
    return paths
