"""``rtgen::AttentionConv`` against the same in torch: attention, 1x1 convolution and addition, float16, one GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from rtgen.bench.result import Measurement

if TYPE_CHECKING:
    from torch import Tensor

    Block = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """qkv, weight, bias and residual to the output, as the plugin takes them."""


@dataclass(frozen=True)
class Size:
    """Of a mid block's attention: frames of height x width places."""

    channels: int
    frames: int
    height: int
    width: int
    of: str

    def __str__(self) -> str:
        frames = f"{self.frames} frames x " if self.frames > 1 else ""
        return f"{frames}{self.height * self.width} tokens x {self.channels} channels"


SIZES: Final = (
    Size(384, 1, 60, 104, "Wan's decoder at 480x832"),
    Size(384, 3, 60, 104, "the same, a chunk of three latent frames at once"),
    Size(512, 1, 64, 64, "a decoder of 512 channels at 512x512"),
    Size(112, 3, 24, 24, "the bundled model's decoder at 192x192"),
)
SETS: Final = 4
"""Of tensors, used in turn: together they are larger than the second-level cache at the sizes that matter."""

WARM_UP: Final = 3
"""Replays before the first that counts."""


def measure(repeats: int) -> list[Measurement]:
    """Microseconds for each size, medians of ``repeats`` replays of a CUDA graph; random data.

    Raises MissingDependencyError without torch, NoGpuError where it sees no GPU.
    """
    from rtgen.bench.kernels import require_gpu
    from rtgen.plugins.attention_conv import torch_op

    require_gpu()
    found = []
    for size in SIZES:
        sets = [_tensors(size, seed) for seed in range(SETS)]
        value = _microseconds(torch_op(), sets, repeats)
        for baseline, note in ((in_torch, "scaled_dot_product_attention"), (written_out, "product, softmax, product")):
            time = _microseconds(baseline, sets, repeats)
            note = f"{size.of}; torch's {note}, then linear and add"
            found.append(Measurement(f"AttentionConv, {size}", value, "us", time, time / value, note))
    return found


def in_torch(qkv: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """The block as :class:`rtgen.models.autoencoder_blocks.AttentionBlock` computes it."""
    from torch.nn import functional as F

    query, key, value = qkv.unsqueeze(1).chunk(3, dim=-1)
    return _projected(F.scaled_dot_product_attention(query, key, value).squeeze(1), weight, bias, residual)


def written_out(qkv: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """The same with the matrix of scores in memory, in float16."""
    query, key, value = qkv.chunk(3, dim=-1)
    scores = (query * weight.shape[1] ** -0.5) @ key.transpose(1, 2)
    return _projected(scores.softmax(dim=-1) @ value, weight, bias, residual)


def _projected(attended: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    from torch.nn import functional as F

    streams, channels, frames, height, width = residual.shape
    image = F.linear(attended, weight, bias).reshape(streams, frames, height, width, channels)
    return residual + image.permute(0, 4, 1, 2, 3)


def _tensors(size: Size, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    import torch

    generator = torch.Generator("cuda").manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda").half()

    channels = size.channels
    return (
        noise(size.frames, size.height * size.width, 3 * channels),
        noise(channels, channels) * channels**-0.5,
        noise(channels),
        noise(1, channels, size.frames, size.height, size.width),
    )


def _microseconds(block: Block, sets: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], repeats: int) -> float:
    """Of one call: a graph with a call on each set, replayed."""
    from rtgen.bench.kernels import require_gpu

    torch = require_gpu()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for tensors in sets:
            block(*tensors)  # compiled and warm before the capture
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for tensors in sets:
            block(*tensors)
    times: list[float] = []
    for repeat in range(repeats + WARM_UP):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if repeat >= WARM_UP:
            times.append(start.elapsed_time(end) * 1000 / len(sets))
    return median(times)
