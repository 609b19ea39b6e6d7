"""Launch plan of ``rtgen::W4A4Linear``: which kernels, tiles and scratch memory a layer takes.

Two kernels: ``w4a4_quantize.cu`` turns activations into codes and computes the thin product of the low-rank branch,
``w4a4_linear.cu`` does the rest. Both exist for INT4 and for INT8 tensor cores, and give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from rtgen.plugins.base import Attributes, KernelSource, Shape, TensorView, scratch_places

if TYPE_CHECKING:
    from rtgen.plugins.loader import LoadedKernels

GROUP: Final = 64
INT4_TENSOR_CORES: Final = frozenset({"7.5", "8.0", "8.6", "8.9"})
"""Compute capabilities whose tensor cores multiply INT4. Hopper and Blackwell emulate it, slowly."""

NONE, GELU, GATED = 0, 1, 2
"""Epilogues, as ``w4a4_linear.cu`` numbers them."""

_QUANTIZED_TOKENS: Final = 16
_QUANTIZE_THREADS: Final = 192
_STEP: Final = 2
_RANKS: Final = 32
_TOKEN_BLOCK: Final = 288
"""A multiple of the tokens of every tile."""
_FEATURE_BLOCK: Final = 192


@dataclass(frozen=True)
class Tile:
    """What a thread block of ``w4a4_linear.cu`` computes: warps of 48 tokens by 48 features."""

    warps_m: int
    warps_n: int
    stages: int
    per_multiprocessor: int
    """Blocks that share one."""
    time: float
    """Of a block with its neighbours on the multiprocessor, relative to the other tiles of the GPU."""

    @property
    def tokens(self) -> int:
        return 48 * self.warps_m

    @property
    def features(self) -> int:
        return 48 * self.warps_n

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    def shared(self, int8: bool) -> int:
        """Bytes of shared memory: stages of codes, weights, and float32 scales of two groups."""
        codes = 128 if int8 else 64
        return self.stages * (self.tokens * (codes + 2 * 4) + self.features * (64 + 2 * 4))

    def source(self, int8: bool) -> KernelSource:
        macros = (("INT8", int(int8)), ("WARPS_M", self.warps_m), ("WARPS_N", self.warps_n), ("STAGES", self.stages))
        return KernelSource("w4a4_linear.cu", macros)

    def count(self, tokens: int, features: int) -> int:
        """Tiles of an output."""
        return -(-features // self.features) * -(-tokens // self.tokens)

    def blocks(self, multiprocessors: int) -> int:
        """That run at once."""
        return multiprocessors * self.per_multiprocessor

    def cost(self, tokens: int, features: int, multiprocessors: int) -> float:
        """Rounds of tiles times their length."""
        return -(-self.count(tokens, features) // self.blocks(multiprocessors)) * self.time


TILES: Final = (Tile(2, 4, 3, 1, 0.8), Tile(1, 2, 3, 2, 0.5))
"""Where a block may have 99 KB of shared memory. Times are those of an H200."""
OTHER_TILES: Final[Mapping[str, tuple[Tile, ...]]] = {
    "7.5": (Tile(2, 4, 2, 1, 0.8), Tile(1, 2, 2, 1, 0.4)),  # 64 KB
    "9.0": (Tile(3, 4, 4, 1, 1.0), Tile(1, 2, 3, 4, 0.8)),  # 227 KB
}
"""By compute capability, where it may have less or more."""


@dataclass(frozen=True)
class Scratch:
    """Offsets in the workspace, in bytes, and its size. ``plugins/w4a4_layout.cuh`` says how its parts lie."""

    codes: int
    """Of the activations, a byte or half a byte each."""
    token_scales: int
    """[groups, padded tokens] float32."""
    hidden: int
    """The thin product, [padded tokens, padded rank] float16."""
    feature_scales: int
    """[groups, padded features] float32."""
    size: int


def scratch(tokens: int, features: int, width: int, rank: int, int8: bool) -> Scratch:
    """The workspace of a layer."""
    rows, groups = padded_tokens(tokens), width // GROUP
    steps = -(-groups // _STEP)
    sizes = (
        rows * steps * _STEP * GROUP // (1 if int8 else 2),
        groups * rows * 4,
        rows * padded_rank(rank) * 2,
        groups * _padded(features, _FEATURE_BLOCK) * 4,
    )
    return Scratch(*scratch_places(sizes))


def padded_tokens(tokens: int) -> int:
    """Every tile shape finds whole panels in memory."""
    return _padded(tokens, _TOKEN_BLOCK)


def padded_rank(rank: int) -> int:
    """The branch is computed in steps of 32 ranks, at least one."""
    return _padded(max(1, rank), _RANKS)


def tiles(compute_capability: str) -> tuple[Tile, ...]:
    """What a GPU chooses from."""
    return OTHER_TILES.get(compute_capability, TILES)


@dataclass(frozen=True)
class W4A4LinearKernel:
    """Of W4A4Linear, and of W4A4LinearGated, which has the inputs gate and residual besides."""

    gated: bool = False
    int8: bool | None = None
    """Whether INT8 tensor cores multiply; None: where the GPU has none for INT4."""

    def sources(self, attributes: Attributes, compute_capability: str) -> tuple[KernelSource, ...]:
        int8 = self._int8(compute_capability)
        return (_quantize_source(int8), *(tile.source(int8) for tile in tiles(compute_capability)))

    def workspace(self, inputs: Sequence[Shape], attributes: Attributes, compute_capability: str) -> int:
        *leading, width = inputs[0]
        features, rank = inputs[1][0], inputs[5][0]
        return scratch(prod(leading), features, width, rank, self._int8(compute_capability)).size

    def launch(
        self,
        kernels: LoadedKernels,
        stream: int,
        inputs: Sequence[TensorView],
        outputs: Sequence[TensorView],
        workspace: int,
        attributes: Attributes,
    ) -> None:
        from rtgen.plugins.loader import Pointer

        *leading, width = inputs[0].shape
        tokens, features, rank = prod(leading), inputs[1].shape[0], inputs[5].shape[0]
        if not tokens or not features:
            return
        x, weights, feature_scales, pre_scale, shift, down, up, bias = (Pointer(view.address) for view in inputs[:8])
        int8, groups = self._int8(kernels.compute_capability), width // GROUP
        places = scratch(tokens, features, width, rank, int8)
        codes, token_scales = Pointer(workspace + places.codes), Pointer(workspace + places.token_scales)
        hidden, turned_scales = Pointer(workspace + places.hidden), Pointer(workspace + places.feature_scales)
        branch_steps, token_stride = padded_rank(rank) // _RANKS, padded_tokens(tokens)
        kernels.launch(
            stream,
            _quantize_source(int8),
            "quantize_rotated" if attributes["rotate"] else "quantize_plain",
            (-(-tokens // _QUANTIZED_TOKENS), branch_steps),
            _QUANTIZE_THREADS,
            *(x, pre_scale, shift, down, feature_scales, codes, token_scales, hidden, turned_scales),
            *(tokens, features, groups, rank, token_stride),
        )
        tile = min(
            tiles(kernels.compute_capability), key=lambda tile: tile.cost(tokens, features, kernels.multiprocessors)
        )
        gate, residual = (Pointer(view.address) for view in inputs[8:]) if self.gated else (Pointer(0), Pointer(0))
        tokens_per_gate = tokens // prod(inputs[8].shape[:-1]) if self.gated else 1
        epilogue = GATED if self.gated else int(attributes["epilogue"])
        kernels.launch(
            stream,
            tile.source(int8),
            "linear",
            (min(tile.count(tokens, features), tile.blocks(kernels.multiprocessors)),),
            tile.threads,
            *(codes, token_scales, hidden, weights, turned_scales, up, bias, gate, residual),
            *(Pointer(outputs[0].address), tokens, features, groups, rank, branch_steps, token_stride),
            *(tokens_per_gate, epilogue),
            shared=tile.shared(int8),
        )

    def _int8(self, compute_capability: str) -> bool:
        return compute_capability not in INT4_TENSOR_CORES if self.int8 is None else self.int8


def _quantize_source(int8: bool) -> KernelSource:
    return KernelSource("w4a4_quantize.cu", (("INT8", int(int8)),))


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
