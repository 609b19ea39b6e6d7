"""Launch plan of ``rtgen::W4A4Linear``: which kernels, tiles and scratch memory a layer takes.

Two kernels: ``w4a4_quantize.cu`` turns activations into codes and computes the thin product of the low-rank branch,
``w4a4_linear.cu`` does the rest; on Hopper ``w4a4_quantize_wgmma.cu`` and ``w4a4_linear_wgmma.cu``. All ways to
multiply give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from rtgen.plugins.base import Attributes, KernelSource, Shape, TensorView, scratch_places

if TYPE_CHECKING:
    from rtgen.plugins.loader import LoadedKernels, Pointer

GROUP: Final = 64

NONE, GELU, GATED = 0, 1, 2
"""Epilogues, as ``plugins/w4a4_problem.cuh`` numbers them."""


_STEP: Final = 2
_RANKS: Final = 32


@dataclass(frozen=True)
class Tile:
    """What a thread block of the second kernel computes at a time."""

    tokens: int
    features: int
    threads: int
    per_multiprocessor: int
    """Blocks that share one."""
    time: float
    """Of a tile with its neighbours on the multiprocessor, relative to the other tiles of the GPU."""
    shared: int
    """Bytes of shared memory."""
    source: KernelSource

    def count(self, tokens: int, features: int) -> int:
        """Tiles of an output."""
        return -(-features // self.features) * -(-tokens // self.tokens)

    def blocks(self, multiprocessors: int) -> int:
        """That run at once."""
        return multiprocessors * self.per_multiprocessor

    def cost(self, tokens: int, features: int, multiprocessors: int) -> float:
        """Rounds of tiles times their length."""
        return -(-self.count(tokens, features) // self.blocks(multiprocessors)) * self.time


@dataclass(frozen=True)
class Quantize:
    """How the first kernel is launched: ``w4a4_quantize.cu``."""

    file: str = "w4a4_quantize.cu"
    tokens: int = 16
    """Of a block, at most."""
    threads: int = 192
    preparing: int = 132
    """Blocks that put scales into another form."""
    shared: int = 0
    """Bytes of dynamic shared memory."""

    def grid(self, tokens: int, multiprocessors: int) -> tuple[int, tuple[int, ...]]:
        """Blocks, and what the kernel takes besides sizes."""
        return -(-tokens // self.tokens) + self.preparing, ()


@dataclass(frozen=True)
class HopperQuantize(Quantize):
    """``w4a4_quantize_wgmma.cu``: a block for each multiprocessor, and just as many tokens as keep all busy."""

    def grid(self, tokens: int, multiprocessors: int) -> tuple[int, tuple[int, ...]]:
        return multiprocessors, (min(self.tokens, _padded(-(-tokens // multiprocessors), 8)),)


@dataclass(frozen=True)
class Path:
    """A way to multiply the codes, and the sizes of ``plugins/w4a4_layout.cuh`` that belong to it, in bytes."""

    macros: tuple[tuple[str, int], ...]
    token_block: int
    """Tokens are padded to a multiple: whole panels of every tile."""
    feature_block: int
    code_row: int
    """Of a token's codes in a step."""
    token_scales: int
    """Of a token's scales in a step."""
    feature_scales: int
    quantize: Quantize = Quantize()
    weight_row: int = 0
    """Of a feature's codes in a step where the weights are taken apart ahead, and ``low_rank_up`` put in rows."""
    overlap: bool = False
    """Kernels wait for the ones before them on their own (griddepcontrol.wait)."""

    def quantize_source(self) -> KernelSource:
        return KernelSource(self.quantize.file, self.macros)


_HOPPER_QUANTIZE: Final = HopperQuantize("w4a4_quantize_wgmma.cu", 40, 512, 0, 8 * 3 * (40 * 128 + 32 * 128 + 256))
"""8 warps with three groups each: of 40 tokens, 32 ranks and two vectors."""

INT4: Final = Path((("INT8", 0),), 288, 192, 64, 8, 8)
"""On INT4 tensor cores (mma.sync)."""

INT8: Final = Path((("INT8", 1),), 288, 192, 128, 8, 8)
"""The same integers on INT8 tensor cores."""

HOPPER_INT8: Final = Path((("INT8", 1), ("WGMMA", 1), ("FP8", 0)), 192, 160, 128, 4, 32, _HOPPER_QUANTIZE, 128, True)
"""The same on INT8 tensor cores by wgmma, the only way to full speed on Hopper."""

HOPPER_FP8: Final = Path((("INT8", 1), ("WGMMA", 1), ("FP8", 1)), 192, 160, 128, 4, 32, _HOPPER_QUANTIZE, 128, True)
"""The same integers as float8, which is exact: their sums need no conversion."""

PATHS: Final[Mapping[str, Path]] = {"7.5": INT4, "8.0": INT4, "8.6": INT4, "8.9": INT4, "9.0": HOPPER_FP8}
"""By compute capability; INT8 elsewhere. Hopper and Blackwell emulate INT4, slowly."""


def warp_tile(path: Path, rows: int, columns: int, stages: int, per_multiprocessor: int, time: float) -> Tile:
    """A tile of ``w4a4_linear.cu``: ``rows`` x ``columns`` warps, each with 48 tokens and 48 features."""
    tokens, features = 48 * rows, 48 * columns
    shared = stages * (tokens * (path.code_row + path.token_scales) + features * (GROUP + path.feature_scales))
    macros = (*path.macros, ("WARPS_M", rows), ("WARPS_N", columns), ("STAGES", stages))
    source = KernelSource("w4a4_linear.cu", macros)
    return Tile(tokens, features, 32 * rows * columns, per_multiprocessor, time, shared, source)


def hopper_tile(path: Path, stages: int = 4) -> Tile:
    """The tile of ``w4a4_linear_wgmma.cu``: three warpgroups of 64 tokens, and one that copies."""
    tokens, features = path.token_block, path.feature_block
    stage = tokens * (path.code_row + path.token_scales) + features * (path.weight_row + path.feature_scales)
    shared = 1024 + stages * -(-stage // 1024) * 1024
    macros = (("FP8", dict(path.macros)["FP8"]), ("STAGES", stages))
    return Tile(tokens, features, 512, 1, 1.0, shared, KernelSource("w4a4_linear_wgmma.cu", macros))


def tiles(path: Path, compute_capability: str) -> tuple[Tile, ...]:
    """What a GPU chooses from. A block may have 64 KB of shared memory on Turing, 99 KB and more elsewhere."""
    if path.weight_row:
        return (hopper_tile(path),)
    stages = 2 if compute_capability == "7.5" else 3
    return warp_tile(path, 2, 4, stages, 1, 0.7), warp_tile(path, 1, 2, stages, 2, 0.5)


@dataclass(frozen=True)
class Scratch:
    """Offsets in the workspace, in bytes, and its size. The sources of the first kernel say how its parts lie."""

    codes: int
    """Of the activations."""
    token_scales: int
    hidden: int
    """The thin product, float16."""
    feature_scales: int
    wide_weights: int
    """Weights with a byte a code, where the path takes them so."""
    up: int
    """low_rank_up in rows of 32 ranks, likewise."""
    size: int


@dataclass(frozen=True)
class Place:
    """A workspace and where its parts are."""

    address: int
    parts: Scratch

    def of(self, part: str) -> Pointer:
        """The address of a part of :class:`Scratch`."""
        from rtgen.plugins.loader import Pointer

        return Pointer(self.address + getattr(self.parts, part))


def scratch(path: Path, tokens: int, features: int, width: int, rank: int) -> Scratch:
    """The workspace of a layer."""
    rows, columns = _padded(tokens, path.token_block), _padded(features, path.feature_block)
    steps, ranks = -(-width // (_STEP * GROUP)), padded_rank(rank)
    sizes = (
        rows * steps * path.code_row,
        rows * steps * path.token_scales,
        rows * ranks * 2,
        columns * steps * path.feature_scales,
        columns * steps * path.weight_row,
        columns * ranks * 2 if path.weight_row else 0,
    )
    return Scratch(*scratch_places(sizes))


def padded_rank(rank: int) -> int:
    """The branch is computed in steps of 32 ranks, at least one."""
    return _padded(max(1, rank), _RANKS)


@dataclass(frozen=True)
class W4A4LinearKernel:
    """Of W4A4Linear, and of W4A4LinearGated, which has the inputs gate and residual besides.

    On Hopper the second kernel takes weights, their scales and ``low_rank_up`` in a form of its own. A launch makes it
    in the workspace, unless :meth:`prepare` has made it before.
    """

    gated: bool = False
    path: Path | None = None
    """None: the GPU's."""
    constants: int = 0
    """Address of what :meth:`prepare` made; 0: each launch makes it."""

    def sources(self, attributes: Attributes, compute_capability: str) -> tuple[KernelSource, ...]:
        path = self._path(compute_capability)
        return (path.quantize_source(), *(tile.source for tile in tiles(path, compute_capability)))

    def workspace(self, inputs: Sequence[Shape], attributes: Attributes, compute_capability: str) -> int:
        *leading, width = inputs[0]
        features = 0 if self.constants else inputs[1][0]
        return scratch(self._path(compute_capability), prod(leading), features, width, inputs[5][0]).size

    def constants_bytes(self, inputs: Sequence[Shape], compute_capability: str) -> int:
        """What :meth:`prepare` fills for inputs of these shapes; 0 on GPUs where nothing is prepared."""
        path = self._path(compute_capability)
        if not path.weight_row or not inputs[1][0]:
            return 0
        return scratch(path, 0, inputs[1][0], inputs[0][-1], inputs[5][0]).size

    def prepare(self, kernels: LoadedKernels, stream: int, inputs: Sequence[TensorView], constants: int) -> None:
        """Put the constants of a layer, of ``inputs`` but x, into the form of the second kernel, at ``constants``."""
        path = self._path(kernels.compute_capability)
        features, rank, width = inputs[1].shape[0], inputs[5].shape[0], inputs[0].shape[-1]
        place = Place(constants, scratch(path, 0, features, width, rank))
        self._quantize(kernels, stream, path, 0, inputs, place, place, {"rotate": 0})

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
        tokens, features, rank, groups = prod(leading), inputs[1].shape[0], inputs[5].shape[0], width // GROUP
        if not tokens or not features:
            return
        path, count = self._path(kernels.compute_capability), kernels.multiprocessors
        made = kept = Place(workspace, scratch(path, tokens, 0 if self.constants else features, width, rank))
        if self.constants:
            kept = Place(self.constants, scratch(path, 0, features, width, rank))
        self._quantize(kernels, stream, path, tokens, inputs, made, kept, attributes)
        tile = min(tiles(path, kernels.compute_capability), key=lambda tile: tile.cost(tokens, features, count))
        weights, up, bias = (Pointer(inputs[number].address) for number in (1, 6, 7))
        if path.weight_row:
            weights, up = kept.of("wide_weights"), kept.of("up")
        gate, residual = (Pointer(view.address) for view in inputs[8:]) if self.gated else (Pointer(0), Pointer(0))
        tokens_per_gate = tokens // prod(inputs[8].shape[:-1]) if self.gated else 1
        kernels.launch(
            stream,
            tile.source,
            "linear",
            (min(tile.count(tokens, features), tile.blocks(count)),),
            tile.threads,
            *(made.of("codes"), made.of("token_scales"), made.of("hidden")),
            *(weights, kept.of("feature_scales"), up, bias),
            *(gate, residual, Pointer(outputs[0].address)),
            *(tokens, features, groups, rank, padded_rank(rank) // _RANKS, _padded(tokens, path.token_block)),
            *(tokens_per_gate, GATED if self.gated else int(attributes["epilogue"])),
            shared=tile.shared,
            overlap=path.overlap,
        )

    def _quantize(
        self,
        kernels: LoadedKernels,
        stream: int,
        path: Path,
        tokens: int,
        inputs: Sequence[TensorView],
        made: Place,
        kept: Place,
        attributes: Attributes,
    ) -> None:
        """The first kernel: tokens into ``made``, and constants into ``kept`` unless they are there already."""
        from rtgen.plugins.loader import Pointer

        x, weights, feature_scales, pre_scale, shift, down, up = (Pointer(view.address) for view in inputs[:7])
        features, rank, groups = inputs[1].shape[0], inputs[5].shape[0], inputs[0].shape[-1] // GROUP
        blocks, further = path.quantize.grid(tokens, kernels.multiprocessors)
        constants = [feature_scales]
        results = [made.of("codes"), made.of("token_scales"), made.of("hidden"), kept.of("feature_scales")]
        if path.weight_row:
            constants = [Pointer(0) if self.constants else weights, feature_scales, up]
            results += [kept.of("wide_weights"), kept.of("up")]
        kernels.launch(
            stream,
            path.quantize_source(),
            "quantize_rotated" if attributes["rotate"] else "quantize_plain",
            (blocks, padded_rank(rank) // _RANKS),
            path.quantize.threads,
            *(x, pre_scale, shift, down, *constants, *results),
            *(tokens, features, groups, rank, _padded(tokens, path.token_block), *further),
            shared=path.quantize.shared,
            overlap=path.overlap,
        )

    def _path(self, compute_capability: str) -> Path:
        return PATHS.get(compute_capability, INT8) if self.path is None else self.path


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
