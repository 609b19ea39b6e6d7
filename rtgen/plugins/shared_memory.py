"""Shared memory by compute capability: for launch plans, and for how many blocks a multiprocessor holds.

CUDA programming guide, "Technical Specifications per Compute Capability"; 12.1 has what 12.0 has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MULTIPROCESSOR_KIB: Final[Mapping[str, int]] = {
    "7.5": 64, "8.0": 164, "8.6": 100, "8.7": 164, "8.9": 100, "9.0": 228, "10.0": 228, "10.3": 228, "12.0": 100,
    "12.1": 100,
}  # fmt: skip
"""KiB that the blocks on a multiprocessor share."""

_NOT_RESERVED: Final = frozenset({"7.5"})


def reserved_kib(compute_capability: str) -> int:
    """KiB that the system takes of the multiprocessor's for every block."""
    return 0 if compute_capability in _NOT_RESERVED else 1


def block_kib(compute_capability: str) -> int:
    """The most KiB that one block may have. Raises KeyError for a compute capability that the table lacks."""
    return MULTIPROCESSOR_KIB[compute_capability] - reserved_kib(compute_capability)
