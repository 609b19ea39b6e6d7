"""What a pass or a decoder run is made of: each item is what one fused kernel does. Counted, not yet timed."""

from dataclasses import dataclass
from typing import Literal

Part = Literal["projections", "ffn", "self_attention", "cross_attention", "elementwise", "decoder"]

TITLES: dict[Part, str] = {
    "projections": "projections",
    "ffn": "feed-forward",
    "self_attention": "self-attention over the ring",
    "cross_attention": "cross-attention",
    "elementwise": "norms and element-wise",
    "decoder": "decoder",
}


@dataclass(frozen=True)
class Product:
    """A linear layer on ``rows`` vectors; ``name`` is its weight's in the checkpoint."""

    part: Part
    name: str
    rows: int
    inputs: int
    outputs: int

    @property
    def operations(self) -> int:
        """A multiplication and an addition count as two, as everywhere here."""
        return 2 * self.rows * self.inputs * self.outputs

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Attention:
    """softmax(Q K^T) V, fused, over all heads: ``width`` is heads times head_dim.

    ``over_ring``: K and V lie in the ring. The softmax is not counted, as is the custom.
    """

    part: Part
    queries: int
    keys: int
    width: int
    over_ring: bool = False
    times: int = 1

    @property
    def operations(self) -> int:
        return 4 * self.queries * self.keys * self.width * self.times


@dataclass(frozen=True)
class Convolution:
    """A convolution that makes ``positions`` vectors of ``outputs`` channels; ``read`` elements go in."""

    part: Part
    positions: int
    taps: int
    inputs: int
    outputs: int
    read: int

    @property
    def operations(self) -> int:
        return 2 * self.positions * self.taps * self.inputs * self.outputs

    @property
    def weights(self) -> int:
        return self.taps * self.inputs * self.outputs


@dataclass(frozen=True)
class Elementwise:
    """Norms, rotations, gates and the like, bound by the memory they touch.

    ``wide``: float32 elements read and written (the residual stream). ``narrow``: elements in the recipe's precision.
    """

    part: Part
    wide: int
    narrow: int


Operation = Product | Attention | Convolution | Elementwise
