"""Element-wise work fused by torch.compile, for those who ask for it: it needs a compiler, and its time at first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, cast

import torch

if TYPE_CHECKING:
    from rtgen.models.dit import Block, CausalVideoDiT

VARIABLE: Final = "RTGEN_TORCH_COMPILE"
"""Set to 1 in the environment: compile. Triton is needed on a GPU, a C++ compiler on the processor."""


def wants_compilation() -> bool:
    """Whether the user asks for it."""
    return os.environ.get(VARIABLE) == "1"


def compile_blocks(model: torch.nn.Module) -> None:
    """Let torch.compile fuse what lies between the products of the blocks: norms, modulation, rotation, rounding.

    Attention to the ring stays outside: it is a kernel, and it changes a state. Blocks share one compilation of each
    half, which happens in the first pass of a size.
    """
    for block in cast("CausalVideoDiT", model).blocks:
        half = cast("Block", block)
        half.enter = torch.compile(half.enter, dynamic=False)  # type: ignore[method-assign]
        half.leave = torch.compile(half.leave, dynamic=False)  # type: ignore[method-assign]
