"""``rtgen::QuantizedKVCacheAttention`` beside attention over a BF16 ring: cuDNN's and FlashAttention, one GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from rtgen.bench.result import Measurement

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn.attention import SDPBackend

HEADS: Final = 12
HEAD_DIM: Final = 128
LAYERS: Final = 30
FRAME: Final = 1560
"""Tokens of a latent frame at 480x832. This and the three above are Wan 2.1 1.3B's."""
CHUNK: Final = 3
"""Latent frames of a pass."""
WINDOWS: Final = (9, 12, 21)
"""Latent frames in the ring."""
SETS: Final = 2
"""Of tensors, used in turn: a ring of codes alone would come close to fitting the second-level cache."""
WARM_UP: Final = 5
GIB: Final = 1 << 30


@dataclass(frozen=True)
class Variant:
    """How the ring is kept."""

    title: str
    bits: int
    keep: float = 1.0

    def attributes(self, window: int) -> dict[str, int | float]:
        """Of the operator."""
        pool = window if self.keep < 1 else 0
        return {"bits": self.bits, "pool": pool, "sink": 0, "keep": self.keep, "recent": 0.25}


VARIANTS: Final = (Variant("INT4", 4), Variant("INT4, half pruned", 4, 0.5), Variant("INT8", 8))


def measure(repeats: int) -> list[Measurement]:
    """Milliseconds of a layer's attention, medians of ``repeats`` replays of CUDA graphs in turn; random data.

    A pass of 3 latent frames over rings of 9, 12 and 21. Each variant is timed whole (means, rotation, codes, pool,
    plan and attention) and attention alone. Then the memory. Raises NoGpuError where torch sees no GPU.
    """
    import torch

    from rtgen.errors import NoGpuError

    if not torch.cuda.is_available():
        raise NoGpuError("torch sees no CUDA GPU", hint="rtgen doctor shows more")
    times = [result for window in WINDOWS for result in _times(window, repeats)]
    return [*times, *(result for variant in VARIANTS for result in _memory(variant))]


def _times(window: int, repeats: int) -> list[Measurement]:
    from torch.nn.attention import SDPBackend

    kv = [_floats(window, seed) for seed in range(SETS)]
    baselines = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FlashAttention": SDPBackend.FLASH_ATTENTION}
    calls: dict[str, Sequence[Callable[[], object]]] = {
        name: [_sdpa(tensors, backend) for tensors in kv] for name, backend in baselines.items()
    }
    for variant in VARIANTS:
        rings = [_Ring(window, variant, seed) for seed in range(SETS)]
        calls[f"{variant.title} ring"] = [ring.attend for ring in rings]
        calls[f"{variant.title} ring, attention alone"] = [ring.attend_only for ring in rings]
    found = _milliseconds(calls, repeats)
    sizes = f"{CHUNK * FRAME:,} x {window * FRAME:,} x {HEADS} x {HEAD_DIM}"
    return [
        Measurement(
            f"KV attention {sizes}, {name}", time, "ms", found[other], found[other] / time, f"{other}, BF16 K and V"
        )
        for name, time in found.items()
        for other in baselines
        if other in found and name not in baselines
    ]


def _memory(variant: Variant) -> list[Measurement]:
    """The ring of the longest window in all layers, and what a pass takes besides, beside what a chunk takes in it."""
    import torch

    window = WINDOWS[-1]
    floats = LAYERS * 2 * HEADS * window * FRAME * HEAD_DIM * 2 / GIB
    ring = _Ring(window, variant, 0)
    size = LAYERS * sum(state.numel() * state.element_size() for state in ring.states) / GIB
    ring.attend()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = ring.attend()
    torch.cuda.synchronize()
    above = (torch.cuda.max_memory_allocated() - before - output.numel() * output.element_size()) / (1 << 20)
    row = HEAD_DIM * variant.bits // 8 + 2
    chunk = LAYERS * 2 * HEADS * CHUNK * FRAME * row / (1 << 20)
    name = f"K/V of {window} frames at 480x832, {LAYERS} layers, {variant.title}"
    return [
        Measurement(name, size, "GiB", floats, floats / size, "BF16 keys and values"),
        Measurement(
            f"{name}: memory of a pass above ring and output", above, "MiB", chunk, chunk / above, "a chunk's codes"
        ),
    ]


def _floats(window: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [1, heads, tokens, head_dim] bfloat16."""
    import torch

    generator = torch.Generator("cuda").manual_seed(seed)

    def noise(tokens: int) -> Tensor:
        shape = (1, HEADS, tokens, HEAD_DIM)
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    return noise(CHUNK * FRAME), noise(window * FRAME), noise(window * FRAME)


def _sdpa(tensors: tuple[Tensor, Tensor, Tensor], backend: SDPBackend) -> Callable[[], Tensor]:
    from torch.nn import functional as F
    from torch.nn.attention import sdpa_kernel

    def attend() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*tensors)

    return attend


class _Ring:
    """A full ring of random codes, whose oldest chunk is overwritten by the pass."""

    def __init__(self, window: int, variant: Variant, seed: int) -> None:
        import torch

        from rtgen.config.kv_cache import most_live
        from rtgen.plugins.quantized_kv_cache_attention import attend_in_place

        self.attributes = variant.attributes(window)
        pool, bits = int(self.attributes["pool"]), variant.bits
        rows = most_live(window, 0, CHUNK, variant.keep, float(self.attributes["recent"])) * FRAME + pool
        self.states = (
            torch.zeros(2, HEADS, rows, HEAD_DIM * bits // 8, dtype=torch.int8, device="cuda"),
            torch.zeros(2, HEADS, rows, dtype=torch.float16, device="cuda"),
            torch.zeros(2, HEADS, HEAD_DIM, dtype=torch.float16, device="cuda"),
            torch.zeros(max(pool, 1), dtype=torch.int64, device="cuda"),
        )
        self._attend_in_place: Callable[..., Tensor] = attend_in_place
        generator = torch.Generator("cuda").manual_seed(seed)
        shape = (1, HEADS, CHUNK * FRAME, HEAD_DIM)
        for first in range(0, window, CHUNK):
            self.chunk = [torch.randn(shape, generator=generator, device="cuda").half() for _ in range(3)]
            self.numbers = self._numbers(first, first + CHUNK)
            self.attend()
        self.numbers = self._numbers(0, window)
        self._scratch: Tensor | None = None

    @staticmethod
    def _numbers(first: int, valid: int) -> list[Tensor]:
        import torch

        return [torch.tensor([count], device="cuda") for count in (first * FRAME, valid * FRAME, FRAME)]

    def attend(self) -> Tensor:
        """The whole plugin."""
        return self._attend_in_place(*self.chunk, *self.states, *self.numbers, **self.attributes)

    def attend_only(self) -> Tensor:
        """The last two kernels, over scratch memory that the first call prepares."""
        import torch

        from rtgen.plugins.loader import current_kernels
        from rtgen.plugins.quantized_kv_cache_attention import PLUGIN
        from rtgen.plugins.quantized_kv_cache_attention_kernel import Launch
        from rtgen.plugins.torch_launch import views

        kernel = PLUGIN.kernel
        assert kernel is not None
        attributes = {**self.attributes, "head_dim": HEAD_DIM}
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
        kernels = current_kernels(kernel.sources(attributes, capability))
        inputs = (*self.chunk, *self.states, *self.numbers)
        is_new = self._scratch is None
        if self._scratch is None:
            size = kernel.workspace([tuple(tensor.shape) for tensor in inputs], attributes, capability)
            self._scratch = torch.empty(size, dtype=torch.uint8, device="cuda")
        output = torch.empty_like(self.chunk[0])
        stream, scratch = torch.cuda.current_stream().cuda_stream, self._scratch.data_ptr()
        given, made = views(inputs), views((output, *self.states))
        if is_new:
            kernel.launch(kernels, stream, given, made, scratch, attributes)
        Launch(kernels, stream, given, made, scratch, attributes).attend()
        return output


def _milliseconds(calls: Mapping[str, Sequence[Callable[[], object]]], repeats: int) -> dict[str, float]:
    """Of one call of each, by name; those that this torch has no kernel for are left out."""
    import torch

    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    for name, sets in calls.items():
        try:
            graphs[name] = _captured(sets)
        except RuntimeError:  # no such backend in this torch, or not for this GPU
            continue
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for repeat in range(repeats + WARM_UP):
        for name, graph in graphs.items():  # in turn: clocks that change meet all alike
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if repeat >= WARM_UP:
                times[name].append(start.elapsed_time(end) / len(calls[name]))
    return {name: median(found) for name, found in times.items()}


def _captured(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    import torch

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for call in calls:
            call()  # compiled and warm before the capture
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return graph
