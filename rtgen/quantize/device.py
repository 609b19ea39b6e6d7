"""What calibration computes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

RESIDENT_SHARE = 0.4
"""Of the free memory of a GPU that weights may fill; the rest is for what is computed with them."""
RESIDENT_BYTES = 2 << 30
"""Of main memory that weights may fill as float32."""


@dataclass(frozen=True)
class Device:
    """A CUDA GPU, which computes in float16 as the engines do, or the processor, which computes in float32."""

    name: str

    @classmethod
    def best(cls) -> Device:
        """A GPU if there is one that torch can use."""
        import torch

        return cls("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return torch.float32 if self.name == "cpu" else torch.float16

    def can_hold(self, parameters: int) -> bool:
        """Whether so many weights may stay in memory for as long as streams are recorded."""
        import torch

        if self.name == "cpu":
            return parameters * 4 <= RESIDENT_BYTES
        free, _ = torch.cuda.mem_get_info()
        return parameters * 2 <= RESIDENT_SHARE * free
