"""``rtgen::W4A4Linear`` beside cuBLAS: the INT8 product alone (``torch._int_mm``), and the BF16 product.

Ours is the whole layer: quantization of the activations, product, scales, low-rank branch of rank 32, bias, GELU. What
depends on the weights alone is prepared once, as backends do when they load a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final

from rtgen.bench.result import Measurement

if TYPE_CHECKING:
    from torch import Tensor

TOKENS: Final = 4680
"""Of a chunk at 480x832."""

LAYERS: Final = ((1536, 1536), (1536, 8960), (8960, 1536))
"""Width and features of the linear layers of Wan 2.1 1.3B: attention, feed-forward up and down."""

RANK: Final = 32
SETS: Final = 4
"""Sets of operands in turn, so that none is in the cache when it is read."""


def measure(repeats: int) -> list[Measurement]:
    """Rates in units of 10^12 operations (2 · tokens · width · features) a second, each the median of ``repeats``
    replays of a CUDA graph with one call for each set of operands; the three take turns."""
    results = []
    for width, features in LAYERS:
        ours, int8, bf16 = (rate(time, width, features) for time in _times(width, features, repeats))
        name = f"W4A4Linear with GELU, {TOKENS} x {width} x {features}"
        results.append(
            Measurement(name, ours, "TOPS", int8, ours / int8, "the baseline is cuBLAS's INT8 product alone")
        )
        results.append(
            Measurement(name, ours, "TOPS", bf16, ours / bf16, "the baseline is cuBLAS's BF16 product alone")
        )
    return results


def rate(microseconds: float, width: int, features: int) -> float:
    return 2e-6 * TOKENS * width * features / microseconds


def _times(width: int, features: int, repeats: int) -> list[float]:
    """Microseconds of a call: W4A4Linear, INT8 product, BF16 product."""
    import torch

    from rtgen.plugins.w4a4_linear import prepared_constants, torch_op
    from rtgen.plugins.w4a4_linear_kernel import GELU

    op = torch_op()
    calls: list[list[Callable[[], object]]] = [[], [], []]
    for seed in range(SETS):
        layer = random_layer(width, features, seed)
        a = torch.randint(-128, 128, (TOKENS, width), dtype=torch.int8, device="cuda")
        b = torch.randint(-128, 128, (features, width), dtype=torch.int8, device="cuda")
        x, w = layer[0][0].bfloat16(), torch.randn(features, width, device="cuda").bfloat16()
        calls[0].append(partial(op, *layer, 0, GELU, prepared_constants(layer[1:])))
        calls[1].append(partial(torch._int_mm, a, b.t()))
        calls[2].append(partial(torch.matmul, x, w.t()))
    graphs = [_graph(group) for group in calls]
    taken = [[_replay(graph) for graph in graphs] for _ in range(repeats)]
    return [median(column) / SETS for column in zip(*taken, strict=True)]


def random_layer(width: int, features: int, seed: int) -> list[Tensor]:
    """Random operands on the GPU, in the operator's order; x is [1, TOKENS, width]."""
    import torch

    random = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int, deviation: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=random, device="cuda") * deviation).half()

    codes = torch.randint(-128, 128, (features, width // 2), generator=random, device="cuda", dtype=torch.int8)
    return [
        *(normal(1, TOKENS, width), codes, normal(features, width // 64, deviation=0.01)),
        *(normal(width).exp(), normal(width, deviation=0.1)),
        *(normal(RANK, width, deviation=width**-0.5), normal(features, RANK, deviation=0.1), normal(features)),
    ]


def _graph(calls: list[Callable[[], object]]) -> Callable[[], None]:
    """A CUDA graph of the calls, after one run of each outside it."""
    import torch

    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def _replay(replay: Callable[[], None]) -> float:
    """Microseconds of a replay on the GPU."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    replay()
    start.record()
    replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3
