"""Renaming by rules: how every layout says which of its tensors is which of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from rtgen.errors import CheckpointError
from rtgen.models.checkpoints.lazy import FileTensor, LazyTensor

WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}
"""What FSDP, activation checkpointing and torch.compile leave in the names of a module's tensors."""


@dataclass(frozen=True)
class Rule:
    """Names that match ``pattern`` as a whole become ``name`` (a template, or a function of the match).

    ``name`` None: such tensors are left out on purpose.
    """

    pattern: re.Pattern[str]
    name: str | Callable[[re.Match[str]], str] | None


def rules(table: Mapping[str, str | Callable[[re.Match[str]], str] | None]) -> tuple[Rule, ...]:
    """Rules from patterns to names; the first that matches is taken."""
    return tuple(Rule(re.compile(pattern), name) for pattern, name in table.items())


def renamed(name: str, table: Sequence[Rule]) -> str | None:
    """Our name of a tensor; None for one left out on purpose; the name itself where no rule knows it."""
    for rule in table:
        match = rule.pattern.fullmatch(name)
        if match is None:
            continue
        if rule.name is None:
            return None
        return rule.name(match) if callable(rule.name) else match.expand(rule.name)
    return name


def rename(tensors: Mapping[str, LazyTensor], translate: Callable[[str], str | None]) -> dict[str, LazyTensor]:
    """Tensors under their new names. Raises CheckpointError when two would share one."""
    found: dict[str, LazyTensor] = {}
    origins: dict[str, str] = {}
    for name, tensor in tensors.items():
        ours = translate(name)
        if ours is None:
            continue
        if ours in found:
            raise CheckpointError(f"{origins[ours]!r} and {name!r} are the same tensor, {ours}")
        found[ours], origins[ours] = tensor, name
    return found


def without_wrappers(name: str) -> str:
    """A name as the module itself has it, without the wrappers around parts of it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def squeezed_alike(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """The tensor in ``shape`` where the two differ in dimensions of size 1 only; otherwise as it is."""
    alike = [size for size in tensor.shape if size != 1] == [size for size in shape if size != 1]
    if not alike or not isinstance(tensor, FileTensor) or tensor.stride is not None:
        return tensor
    assert prod(shape) == prod(tensor.shape)
    return FileTensor(tensor.file, tensor.offset, tensor.dtype, shape)
