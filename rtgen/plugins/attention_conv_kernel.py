"""How ``rtgen::AttentionConv`` is launched: one kernel, in the tile shapes that a GPU has shared memory for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rtgen.errors import BuildError
from rtgen.plugins.base import Attributes, KernelSource, Shape, TensorView
from rtgen.plugins.loader import Argument, Pointer
from rtgen.plugins.shared_memory import MULTIPROCESSOR_KIB, block_kib

if TYPE_CHECKING:
    from rtgen.plugins.loader import LoadedKernels

CHANNEL_STEP: Final = 16
MOST_CHANNELS: Final = 512

_WARPGROUP_PRODUCTS: Final = ("9.0",)
_WARPGROUP_QUERIES: Final = 128
_WARPGROUP_KEYS: Final = 32

_MOST_OUT_TILES: Final = 3
"""16-row tiles of the weight that a warp has registers for."""


@dataclass(frozen=True)
class Cluster:
    """``2 * split`` blocks for 128 queries, for widths up to ``channels``; ``stages`` of a block's ring."""

    channels: int
    split: int
    stages: int

    def shared_bytes(self, channels: int) -> int:
        """Of a block: queries, ring and its barriers, and four floats from each thread of a warpgroup."""
        row = 2 * _padded(channels, self.split)
        return _WARPGROUP_QUERIES * row + self.stages * (_WARPGROUP_KEYS * row + 16) + 128 * 16


_CLUSTERS: Final = (Cluster(384, 1, 5), Cluster(512, 2, 3))
"""The first that is wide enough is taken."""


@dataclass(frozen=True)
class Tile:
    """``queries`` of a block, ``keys`` of a step, ``stages`` of the ring that keys and values take turns in."""

    queries: int
    keys: int
    stages: int

    def shared_bytes(self, channels: int) -> int:
        """Queries, ring, numerators of the softmax, and two numbers a query."""
        row = 2 * _padded(channels)
        return self.queries * row + self.stages * self.keys * row + 2 * self.queries * self.keys + 8 * self.queries


_TILES: Final = (
    Tile(64, 32, 4), Tile(64, 32, 3), Tile(64, 16, 4), Tile(64, 16, 2), Tile(64, 16, 1), Tile(32, 16, 1),
)  # fmt: skip
"""The best first: the first that a GPU has shared memory for is taken."""


@dataclass(frozen=True)
class Plan:
    """What a launch takes, for a width and a GPU."""

    source: KernelSource
    entry: str
    queries: int
    blocks: int
    """That share ``queries``."""
    threads: int
    shared: int


def plan(channels: int, compute_capability: str) -> Plan:
    """Raises BuildError for a width or a GPU that the kernels do not serve."""
    if channels % CHANNEL_STEP or not CHANNEL_STEP <= channels <= MOST_CHANNELS:
        raise BuildError(
            f"rtgen::AttentionConv has no kernel for {channels} channels",
            hint=f"multiples of {CHANNEL_STEP} up to {MOST_CHANNELS} have one",
        )
    if compute_capability not in MULTIPROCESSOR_KIB:
        raise BuildError(
            f"rtgen::AttentionConv has no kernel for compute capability {compute_capability}",
            hint=f"it has for {', '.join(MULTIPROCESSOR_KIB)}; rtgen gpu ls shows that of each GPU",
        )
    if compute_capability in _WARPGROUP_PRODUCTS:
        return _warpgroup_plan(channels)
    return _warp_plan(channels, block_kib(compute_capability) * 1024)


class AttentionConvKernel:
    """The launch that TensorRT's class and the torch op share. No scratch memory is needed."""

    def sources(self, attributes: Attributes, compute_capability: str) -> tuple[KernelSource, ...]:
        """One, for the attribute ``channels``. Raises BuildError where it or ``scale`` is not served."""
        if not 0 <= attributes["scale"] < math.inf:
            raise BuildError(f"rtgen::AttentionConv has no kernel for the scale {attributes['scale']}")
        return (plan(int(attributes["channels"]), compute_capability).source,)

    def workspace(self, inputs: Sequence[Shape], attributes: Attributes, compute_capability: str) -> int:
        return 0

    def launch(
        self,
        kernels: LoadedKernels,
        stream: int,
        inputs: Sequence[TensorView],
        outputs: Sequence[TensorView],
        workspace: int,
        attributes: Attributes,
    ) -> None:
        """Enqueue on ``stream``. Raises BuildError where the attribute is not the tensors' width."""
        qkv, weight, bias, residual = inputs
        out_channels, channels = weight.shape
        if channels != int(attributes["channels"]) or qkv.shape[2] != 3 * channels:
            raise BuildError(
                f"AttentionConv of {attributes['channels']} channels got tensors {qkv.shape} and {weight.shape}"
            )
        chosen = plan(channels, kernels.compute_capability)
        images, tokens = qkv.shape[:2]
        arguments: tuple[Argument, ...] = (
            *(Pointer(tensor.address) for tensor in (qkv, weight, bias, residual, outputs[0])),
            tokens,
            images // residual.shape[0],
            out_channels,
            scale_of(attributes, channels) / math.log(2),
        )
        grid = (-(-tokens // chosen.queries) * chosen.blocks, images)
        kernels.launch(stream, chosen.source, chosen.entry, grid, chosen.threads, *arguments, shared=chosen.shared)


def scale_of(attributes: Attributes, channels: int) -> float:
    """What products of queries and keys are multiplied by: the attribute, or where that is 0 one over the root."""
    return float(attributes["scale"]) or channels**-0.5


def _warpgroup_plan(channels: int) -> Plan:
    cluster = next(cluster for cluster in _CLUSTERS if channels <= cluster.channels)
    defines = (
        ("CHANNELS", channels),
        ("SPLIT", cluster.split),
        ("STAGES", cluster.stages),
        ("OUT_TILES", _out_tiles(channels, warps=8 * cluster.split)),
    )
    source = KernelSource("attention_conv_wgmma.cu", defines)
    shared = cluster.shared_bytes(channels)
    return Plan(source, "attention_conv_wgmma", _WARPGROUP_QUERIES, 2 * cluster.split, 384, shared)


def _warp_plan(channels: int, available: int) -> Plan:
    tile = next(tile for tile in _TILES if tile.shared_bytes(channels) <= available)
    warps = tile.queries // 8  # two for each 16 queries
    defines = (
        ("CHANNELS", channels),
        ("QUERIES", tile.queries),
        ("KEYS", tile.keys),
        ("STAGES", tile.stages),
        ("OUT_TILES", _out_tiles(channels, warps)),
    )
    source = KernelSource("attention_conv.cu", defines)
    return Plan(source, "attention_conv", tile.queries, 1, warps * 32, tile.shared_bytes(channels))


def _out_tiles(channels: int, warps: int) -> int:
    """Tiles of the weight a warp takes at once, for about as many output channels, in as few even rounds as can be."""
    tiles = -(-channels // (16 * warps))
    return -(-tiles // -(-tiles // _MOST_OUT_TILES))


def _padded(channels: int, split: int = 1) -> int:
    """Channels of a row in shared memory: whole blocks of 64, as many for each part."""
    return -(-channels // (64 * split)) * 64 * split
