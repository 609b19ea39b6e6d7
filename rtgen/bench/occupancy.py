"""How many blocks of a kernel a multiprocessor holds at a time, and what limits them.

The rules are those of CUDA's occupancy calculator; the limits are in ``configs/estimate/multiprocessors.toml`` and, of
shared memory, in ``rtgen/plugins/shared_memory.py``, where launch plans have them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from pydantic import Field

from rtgen.config.base import Section
from rtgen.errors import ConfigError
from rtgen.estimate.efficiencies import load_estimate_file
from rtgen.plugins.shared_memory import MULTIPROCESSOR_KIB, block_kib, reserved_kib

Resource = Literal["threads", "blocks", "registers", "shared memory"]

_WARP: Final = 32
_REGISTER_UNIT: Final = 256
"""Registers are given to a warp in steps of so many."""
_SHARED_UNIT: Final = 128
_KIB: Final = 1024


class Multiprocessor(Section):
    """What the blocks on one multiprocessor share."""

    compute_capability: str
    threads: int = Field(gt=0)
    blocks: int = Field(gt=0)
    registers: int = Field(gt=0)

    @property
    def shared_kib(self) -> int:
        """Of all blocks."""
        return MULTIPROCESSOR_KIB[self.compute_capability]

    @property
    def block_shared_kib(self) -> int:
        """The most that one block may have."""
        return block_kib(self.compute_capability)

    @property
    def reserved_kib(self) -> int:
        """Taken by the system for every block."""
        return reserved_kib(self.compute_capability)


class Multiprocessors(Section):
    """The whole file."""

    multiprocessor: tuple[Multiprocessor, ...]


@dataclass(frozen=True)
class Occupancy:
    """Blocks at a time on a multiprocessor, and their share of the threads it could hold (0 .. 1)."""

    blocks: int
    share: float
    limit: Resource


@cache
def multiprocessor(compute_capability: str) -> Multiprocessor:
    """Raises ConfigError for a compute capability that the table lacks."""
    for entry in load_estimate_file("multiprocessors.toml", Multiprocessors).multiprocessor:
        if entry.compute_capability == compute_capability:
            return entry
    raise ConfigError(
        f"multiprocessors.toml says nothing about compute capability {compute_capability}",
        hint="add a [[multiprocessor]] entry for it",
    )


def occupancy(on: Multiprocessor, *, threads: int, registers: int, shared: int) -> Occupancy:
    """Of blocks of ``threads`` threads with so many ``registers`` a thread and ``shared`` bytes a block.

    No blocks fit where one alone needs more than there is.
    """
    warps = -(-threads // _WARP)
    room = shared_room(on, shared)
    fitting: Mapping[Resource, int] = {
        "threads": on.threads // (warps * _WARP),
        "blocks": on.blocks,
        "registers": on.registers // (warps * _rounded(max(registers, 1) * _WARP, _REGISTER_UNIT)),
        "shared memory": room,
    }
    limit = min(fitting, key=lambda name: fitting[name])
    blocks = fitting[limit]
    return Occupancy(blocks, blocks * warps * _WARP / on.threads, limit)


def shared_room(on: Multiprocessor, shared: int) -> int:
    """How many blocks with so many bytes of shared memory fit."""
    if shared > on.block_shared_kib * _KIB:
        return 0
    taken = _rounded(shared + on.reserved_kib * _KIB, _SHARED_UNIT)
    return on.blocks if taken == 0 else on.shared_kib * _KIB // taken


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
