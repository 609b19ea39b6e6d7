"""Low-rank adapters in the form of peft, merged into the weights while they are read (LongLive)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rtgen.errors import CheckpointError
from rtgen.models.checkpoints.lazy import LazyTensor
from rtgen.models.checkpoints.source import Checkpoint, open_checkpoint
from rtgen.models.checkpoints.wan_dit import from_diffusers, original_name

if TYPE_CHECKING:
    from torch import Tensor

SECTION = "generator_lora"
"""Where LongLive's training keeps the generator's adapter."""
PART = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
ALPHA = re.compile(r"(?P<module>.+)\.alpha")
ALPHA_VALUES = ("lora_alpha", "alpha")


@dataclass(frozen=True)
class Adapter:
    """weight + scale * up @ down, for down [rank, in] and up [out, rank]."""

    down: LazyTensor
    up: LazyTensor
    scale: float


@dataclass(frozen=True)
class MergedTensor:
    """A matrix with its adapter added, computed in float32 a few rows at a time."""

    base: LazyTensor
    adapter: Adapter

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> str:
        return "float32"

    def load(self) -> Tensor:
        import torch

        return torch.cat(list(self.pieces(1 << 22))).reshape(self.shape)

    def pieces(self, most_elements: int) -> Iterator[Tensor]:
        columns = self.shape[1]
        rows = max(1, most_elements // columns)
        down, up = self.adapter.down.load().float(), self.adapter.up.load().float() * self.adapter.scale
        for index, piece in enumerate(self.base.pieces(rows * columns)):
            base = piece.float().reshape(-1, columns)
            yield base.addmm(up[index * rows :][: len(base)], down).flatten()


def merged(base: Mapping[str, LazyTensor], adapter_file: Path, *, alpha: float | None) -> dict[str, LazyTensor]:
    """The tensors of a transformer (original names) with the adapter in a file added.

    ``alpha``: what the adapter was trained with, for files that do not say. The product is scaled by alpha / rank.
    Raises CheckpointError when the adapter does not fit the tensors.
    """
    checkpoint = open_checkpoint(adapter_file)
    adapters = _adapters(checkpoint, alpha)
    problems = [f"nothing to adapt at {name!r}" for name in adapters if name not in base]
    for name, adapter in adapters.items():
        (rank, inside), (outside, other) = adapter.down.shape, adapter.up.shape
        if name in base and (base[name].shape != (outside, inside) or rank != other):
            shapes = f"{list(adapter.up.shape)} times {list(adapter.down.shape)}"
            problems.append(f"{shapes} for {name} of {list(base[name].shape)}")
    if problems:
        raise CheckpointError(f"{adapter_file.name} does not fit the denoiser: {_first(problems)}")
    return {name: MergedTensor(tensor, adapters[name]) if name in adapters else tensor for name, tensor in base.items()}


def _adapters(checkpoint: Checkpoint, alpha: float | None) -> dict[str, Adapter]:
    """The adapters of a file by the name of the weight they belong to."""
    tensors = checkpoint.sections.get(SECTION, checkpoint.tensors)
    sides: dict[str, dict[str, LazyTensor]] = {}
    alphas: dict[str, float] = {}
    surplus = []
    for name, tensor in tensors.items():
        if (match := PART.fullmatch(name)) and len(tensor.shape) == 2:
            sides.setdefault(_weight_name(match["module"]), {})[match["side"]] = tensor
        elif (match := ALPHA.fullmatch(name)) and tensor.shape in ((), (1,)):
            alphas[_weight_name(match["module"])] = float(tensor.load().item())
        else:
            surplus.append(f"surplus {name!r}")
    surplus += [f"only one half for {name}" for name, halves in sides.items() if len(halves) != 2]
    if surplus or not sides:
        problem = _first(surplus) or "it has no lora_A and lora_B"
        raise CheckpointError(f"{checkpoint.path.name} is not an adapter rtgen can merge: {problem}")
    common = _stated_alpha(checkpoint, alpha)
    found = {}
    for name, halves in sides.items():
        own = alphas.get(name, common)
        if own is None:
            raise CheckpointError(f"{checkpoint.path.name} does not say the alpha of its adapters")
        found[name] = Adapter(halves["A"], halves["B"], own / max(1, halves["A"].shape[0]))
    return found


def _stated_alpha(checkpoint: Checkpoint, alpha: float | None) -> float | None:
    """Alpha of a whole file: what it says itself, else what the caller knows."""
    for name in ALPHA_VALUES:
        value = checkpoint.values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return alpha


def _weight_name(module: str) -> str:
    """Our name of the weight of an adapted module, whichever library named it."""
    name = original_name(f"{module}.weight")
    return from_diffusers(name) or name


def _first(problems: list[str]) -> str:
    more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
    return "; ".join(problems[:4]) + more
