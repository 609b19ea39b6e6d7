"""A linear layer with 4-bit weights and activations as a module around ``rtgen::W4A4Linear``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from rtgen.plugins import w4a4_linear

if TYPE_CHECKING:
    from collections.abc import Mapping

_INPUTS: Final = w4a4_linear.PLUGIN.inputs[1:]
"""Of the operator after the activations: the names of the stored tensors."""


class W4A4Module(nn.Module):
    """x [..., in] of any floating type to [..., out] of that type; the operator computes in float16."""

    weight: Tensor
    """Empty; of use is its type only: the model asks for it."""

    def __init__(self, parts: Mapping[str, Tensor], rotated: bool, dtype: torch.dtype) -> None:
        """``parts``: the stored tensors by suffix (:class:`rtgen.quantize.result.LayerResult`)."""
        super().__init__()
        self.register_buffer("weight", torch.empty(0, dtype=dtype))
        self.rotated = int(rotated)
        codes = parts["codes"].view(torch.int8)
        columns, rows = 2 * codes.shape[1], codes.shape[0]
        none = {
            "low_rank_down": codes.new_zeros((1, columns), dtype=torch.float16),
            "low_rank_up": codes.new_zeros((rows, 1), dtype=torch.float16),
        }
        for name, tensor in (none | dict(parts) | {"codes": codes}).items():
            if name in _INPUTS:
                self.register_buffer(name, tensor)
        self.register_buffer("constants", w4a4_linear.prepared_constants(self._parts()), persistent=False)
        self._operator = w4a4_linear.torch_op()

    def _parts(self) -> list[Tensor]:
        return [getattr(self, name) for name in _INPUTS]

    def forward(self, x: Tensor) -> Tensor:
        half = x.to(torch.float16).contiguous()
        return self._operator(half, *self._parts(), rotate=self.rotated, constants=self.constants).to(x.dtype)
