"""How ``rtgen::QuantizedKVCacheAttention`` is launched: sources, scratch memory, order, grids.

``plugins/kv_cache_ring.cu`` has the steps around attention, ``plugins/kv_cache_attention.cu`` attention, for all GPUs.
What a GPU does otherwise is a row of a table here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rtgen.plugins.base import Attributes, KernelSource, Shape, TensorView, scratch_places
from rtgen.plugins.loader import Argument, Pointer
from rtgen.plugins.shared_memory import MULTIPROCESSOR_KIB

if TYPE_CHECKING:
    from rtgen.plugins.loader import LoadedKernels

_STEPS: Final = "kv_cache_ring.cu"
_ATTENTION: Final = "kv_cache_attention.cu"
_TILE_BYTES: Final = 16


@dataclass(frozen=True)
class Attend:
    """How attention itself runs. A task is ``queries`` tokens of a head, a tile ``keys`` rows of the ring."""

    file: str
    """In ``plugins/``, with the entries ``attend`` and ``combine``."""
    queries: int
    keys: int
    threads: int
    blocks: int
    """That a multiprocessor has registers for."""
    combine_threads: int
    shared: int = 0
    """Bytes of dynamic shared memory of a block; 0: by the formula of ``kv_cache_attention.cu``."""
    most_tasks: int | None = None
    """That a block has room to keep a list of; None for any number."""

    def shared_bytes(self, head_dim: int, bits: int) -> int:
        """Dynamic shared memory of ``attend``: a tile's values as float16, codes and scales of keys and values."""
        return self.shared or self.keys * (2 * head_dim + 2 * head_dim * bits // 8 + 10)


_EVERY_GPU: Final[Mapping[int, Attend]] = {
    64: Attend(_ATTENTION, queries=64, keys=64, threads=128, blocks=3, combine_threads=128),
    128: Attend(_ATTENTION, queries=64, keys=64, threads=128, blocks=2, combine_threads=128),
}
"""By the width of a head."""
_BY_GPU: Final[Mapping[tuple[str, int], Attend]] = {
    ("9.0", 128): Attend(
        "kv_cache_attention_wgmma.cu", queries=128, keys=128, threads=384, blocks=1, combine_threads=256,
        shared=152_704, most_tasks=120,
    ),
}  # fmt: skip
"""By compute capability and the width of a head; all others run as on every GPU."""

_LEAST_SHARED: Final = 64
"""KiB of shared memory of a multiprocessor of a compute capability that the table lacks."""
_MOST_MULTIPROCESSORS: Final[Mapping[str, int]] = {
    "7.5": 72, "8.0": 108, "8.6": 84, "8.9": 142, "9.0": 132, "10.0": 160, "12.0": 188,
}  # fmt: skip
"""Of the largest product of a compute capability; scratch memory is planned where there is no GPU to ask."""
_MULTIPROCESSORS: Final = 192
"""Of a compute capability that is not in the table."""


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a launch, from the shapes of its inputs."""

    heads: int
    tokens: int
    head_dim: int
    rows: int
    """Of the ring and the pool together."""

    @staticmethod
    def of(shapes: Sequence[Shape]) -> Sizes:
        """``shapes`` are those of the plugin's inputs."""
        _, heads, tokens, head_dim = (int(size) for size in shapes[0])
        return Sizes(heads, tokens, head_dim, int(shapes[3][2]))

    def padded(self, attend: Attend) -> int:
        """Tokens up to a whole number of tasks."""
        return -(-self.tokens // attend.queries) * attend.queries

    def tasks(self, attend: Attend) -> int:
        """Groups of queries of all heads."""
        return self.heads * (self.padded(attend) // attend.queries)


@dataclass(frozen=True)
class Scratch:
    """Where the parts of the scratch memory begin, in bytes."""

    q_codes: int
    q_scales: int
    tiles: int
    partial_o: int
    partial_ml: int
    size: int

    @staticmethod
    def of(sizes: Sizes, attend: Attend, pool: int, blocks: int) -> Scratch:
        """``blocks`` is the grid of attention: each may leave sums of its first and of its last task."""
        tiles = 1 + -(-(sizes.rows - pool) // attend.keys) + pool + 1
        queries = sizes.heads * sizes.padded(attend)
        parts = (
            queries * sizes.head_dim,
            queries * 4,
            tiles * _TILE_BYTES,
            2 * blocks * attend.queries * sizes.head_dim * 4,
            2 * blocks * 2 * attend.queries * 4,
        )
        return Scratch(*scratch_places(parts))


def attend_of(compute_capability: str, head_dim: int) -> Attend:
    """How attention runs on a GPU."""
    return _BY_GPU.get((compute_capability, head_dim), _EVERY_GPU[head_dim])


def grid_blocks(
    attend: Attend, sizes: Sizes, bits: int, compute_capability: str, multiprocessors: int | None = None
) -> int:
    """Blocks of the persistent grid: as many as run at a time, and more only where one has no room for its tasks.

    Without the GPU's number of multiprocessors it is the most that there can be.
    """
    most = _MOST_MULTIPROCESSORS.get(compute_capability, _MULTIPROCESSORS)
    taken = attend.shared_bytes(sizes.head_dim, bits) + 1024  # what the system takes of it, where it does
    fitting = (MULTIPROCESSOR_KIB.get(compute_capability, _LEAST_SHARED) << 10) // taken
    blocks = min(most, multiprocessors or most) * max(1, min(attend.blocks, fitting))
    return max(blocks, -(-sizes.tasks(attend) // attend.most_tasks)) if attend.most_tasks else blocks


class RingAttentionKernel:
    """Launches the kernels in order: centre, plan, quantize, pool, attend, combine."""

    def sources(self, attributes: Attributes, compute_capability: str) -> tuple[KernelSource, ...]:
        """The steps around attention, and attention, for which some GPUs have a source of their own."""
        return _sources(attributes, attend_of(compute_capability, int(attributes["head_dim"])))

    def workspace(self, inputs: Sequence[Shape], attributes: Attributes, compute_capability: str) -> int:
        """Bytes for queries as codes, the list of tiles, and the sums of tasks that several blocks share."""
        sizes = Sizes.of(inputs)
        attend = attend_of(compute_capability, sizes.head_dim)
        blocks = grid_blocks(attend, sizes, int(attributes["bits"]), compute_capability)
        return Scratch.of(sizes, attend, int(attributes["pool"]), blocks).size

    def launch(
        self,
        kernels: LoadedKernels,
        stream: int,
        inputs: Sequence[TensorView],
        outputs: Sequence[TensorView],
        workspace: int,
        attributes: Attributes,
    ) -> None:
        """Enqueue the pass. The states are updated where the outputs lie, which is where the inputs lie."""
        launch = Launch(kernels, stream, inputs, outputs, workspace, attributes)
        launch.centre()
        launch.plan()
        launch.quantize()
        if attributes["keep"] < 1:
            launch.pool()
        launch.attend()


def _sources(attributes: Attributes, attend: Attend) -> tuple[KernelSource, ...]:
    """The steps around it, then attention."""
    bits = ("BITS", int(attributes["bits"]))
    ring = (bits, ("HEAD_DIM", int(attributes["head_dim"])), ("KEYS", attend.keys))
    attention = (*ring, ("QUERIES", attend.queries)) if attend.file == _ATTENTION else (bits,)
    return KernelSource(_STEPS, ring), KernelSource(attend.file, attention)


class Launch:
    """One pass: its addresses and sizes, in the order that the kernels take them. See
    :meth:`RingAttentionKernel.launch`."""

    def __init__(
        self,
        kernels: LoadedKernels,
        stream: int,
        inputs: Sequence[TensorView],
        outputs: Sequence[TensorView],
        workspace: int,
        attributes: Attributes,
    ) -> None:
        capability, sizes = kernels.compute_capability, Sizes.of([tensor.shape for tensor in inputs])
        self._kernels, self._stream, self._sizes, self._attributes = kernels, stream, sizes, attributes
        self._attend = attend_of(capability, sizes.head_dim)
        bits = int(attributes["bits"])
        self._shared = self._attend.shared_bytes(sizes.head_dim, bits)
        self._blocks = grid_blocks(self._attend, sizes, bits, capability, kernels.multiprocessors)
        sources = _sources({**attributes, "head_dim": sizes.head_dim}, self._attend)
        self._padded = sizes.padded(self._attend)
        self._steps, self._attention = sources[0], sources[-1]
        self._query, self._key, self._value = (Pointer(tensor.address) for tensor in inputs[:3])
        self._write, self._valid, self._frame = (Pointer(tensor.address) for tensor in inputs[7:10])
        states = (Pointer(tensor.address) for tensor in outputs)
        self._output, self._codes, self._scales, self._centres, self._pages = states
        self._pool = int(attributes["pool"])
        scratch = Scratch.of(sizes, self._attend, self._pool, self._blocks)
        self._q_codes, self._q_scales, self._tiles, self._partial_o, self._partial_ml = (
            Pointer(workspace + offset)
            for offset in (scratch.q_codes, scratch.q_scales, scratch.tiles, scratch.partial_o, scratch.partial_ml)
        )

    def centre(self) -> None:
        """The ring's first chunk settles what is subtracted from all keys and values."""
        heads, tokens = self._sizes.heads, self._sizes.tokens
        pointers = (self._key, self._value, self._centres, self._write, self._valid)
        self._step("centre", (heads, 2), 512, *pointers, heads, tokens)

    def quantize(self) -> None:
        """Queries to scratch memory, keys and values into the ring."""
        sizes = self._sizes
        grid = (-(-self._padded // 32), sizes.heads, 3)
        self._step(
            "quantize", grid, 256,
            self._query, self._key, self._value, self._centres, self._write, self._pages, self._frame,
            self._q_codes, self._q_scales, self._codes, self._scales,
            sizes.heads, sizes.tokens, self._padded, sizes.rows, self._pool if self._attributes["keep"] < 1 else 0,
        )  # fmt: skip

    def pool(self) -> None:
        """The chunk's frames as pool rows."""
        sizes = self._sizes
        pointers = (self._codes, self._scales, self._pages, self._write, self._frame)
        self._step(
            "pool", (self._pool, sizes.heads, 2), 1024, *pointers, sizes.heads, sizes.tokens, sizes.rows, self._pool
        )

    def plan(self) -> None:
        """Which frames are pruned, where the chunk's go, and which rows are attended to, as tiles."""
        sizes, attributes = self._sizes, self._attributes
        self._step(
            "plan", (1,), 1024,
            self._codes, self._scales, self._pages, self._write, self._valid, self._frame, self._tiles,
            sizes.heads, sizes.tokens, sizes.rows, self._pool,
            int(attributes["sink"]), float(attributes["keep"]), float(attributes["recent"]),
        )  # fmt: skip

    def attend(self) -> None:
        """Attention over the tiles, and the sums of tasks that several blocks share put together."""
        sizes, attend = self._sizes, self._attend
        states = (self._codes, self._scales, self._centres, self._tiles)
        results = (self._output, self._partial_o, self._partial_ml)
        self._kernels.launch(
            self._stream, self._attention, "attend", (self._blocks,), attend.threads,
            self._q_codes, self._q_scales, *states, *results, sizes.heads, sizes.tokens, self._padded, sizes.rows,
            shared=self._shared,
        )  # fmt: skip
        self._kernels.launch(
            self._stream, self._attention, "combine", (sizes.tasks(attend),), attend.combine_threads,
            self._centres, self._tiles, *results, sizes.heads, sizes.tokens, self._padded, self._blocks,
        )  # fmt: skip

    def _step(self, entry: str, grid: tuple[int, ...], threads: int, *arguments: Argument) -> None:
        self._kernels.launch(self._stream, self._steps, entry, grid, threads, *arguments)
