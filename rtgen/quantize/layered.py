"""A denoiser whose blocks are in memory one at a time.

The module's weights are mapped from the checkpoint. A block is copied to the device, in the type it computes in, when
it is its turn, and dropped afterwards; blocks of a small model stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, TypeVar

from torch import nn

if TYPE_CHECKING:
    from rtgen.models.dit import Block, CausalVideoDiT
    from rtgen.quantize.device import Device

Module = TypeVar("Module", bound=nn.Module)


class LayeredDenoiser:
    """``model`` holds mapped weights, of any floating type, and is left as it is."""

    def __init__(self, model: CausalVideoDiT, device: Device, *, resident: bool) -> None:
        """``resident``: whether blocks may stay, if memory has the room."""
        self._model, self._device = model, device
        self.shell = self._shell()
        """All but the blocks, on the device."""
        self._resident: list[Block] | None = None
        if resident and device.can_hold(sum(value.numel() for value in model.parameters())):
            self._resident = [self.block(layer) for layer in range(len(model.blocks))]

    def block(self, layer: int) -> Block:
        """A copy of a block on the device, the caller's own."""
        return self._placed(self._model.blocks[layer])  # type: ignore[return-value]  # ModuleList has no item type

    def blocks(self) -> Iterator[Block]:
        """All blocks in order; each is good until the next is asked for."""
        if self._resident is not None:
            yield from self._resident
            return
        for layer in range(len(self._model.blocks)):
            yield self.block(layer)

    def release(self) -> None:
        """Let go of the blocks that were kept."""
        self._resident = None

    def _shell(self) -> CausalVideoDiT:
        blocks, self._model.blocks = self._model.blocks, nn.ModuleList()
        try:
            return self._placed(self._model)
        finally:
            self._model.blocks = blocks

    def _placed(self, module: Module) -> Module:
        return deepcopy(module).to(self._device.name, self._device.dtype).eval().requires_grad_(False)
