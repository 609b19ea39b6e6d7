"""The same steps as kernels on a CUDA GPU (``plugins/denoiser_steps.cu``): each reads its inputs once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from rtgen.plugins.base import KernelSource
from rtgen.plugins.loader import Argument, Pointer, current_kernels
from rtgen.torch_backend.fp8_linear import CAPABILITY

if TYPE_CHECKING:
    from rtgen.config.model import DenoiserConfig

OWN: Final = 8
"""Numbers of a thread."""
_WARP: Final = 32
_MOST_THREADS: Final = 1024
_ELEMENTWISE: Final = 256
"""Threads of a block of ``gelu``."""
_NOTHING: Final = Pointer(0)


def is_served(config: DenoiserConfig) -> bool:
    """Whether there are kernels for a model's widths."""
    return config.dim % OWN == 0 and config.head_dim % OWN == 0 and config.dim <= OWN * _MOST_THREADS


class KernelSteps:
    """A :class:`rtgen.torch_backend.steps.Steps`; everything that it enqueues can be part of a CUDA graph."""

    def __init__(self, config: DenoiserConfig, compute_capability: tuple[int, int]) -> None:
        """Compiles the kernels. Raises NoGpuError, MissingDependencyError or BuildError."""
        self._heads, self._width = config.heads, config.dim
        self._threads = -(-config.dim // (OWN * _WARP)) * _WARP
        self.source = source_of(config, compute_capability)
        self._kernels = current_kernels((self.source,))

    def norm(
        self,
        x: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        factor: Tensor,
        shift: Tensor,
        step: Tensor | None,
        eps: float,
    ) -> Tensor:
        out = _result((x.shape[0], self._width), x, step)
        frames = factor.shape[0] if factor.ndim == 2 else gate.shape[0] if gate is not None else 1
        self._launch(
            "norm", step, (x.shape[0],), self._threads,
            _at(x), _at(branch), _at(gate), _at(factor), _at(shift), _at(step), _at(out),
            x.shape[0] // frames, _between(gate), _between(factor, shift), eps,
        )  # fmt: skip
        return out

    def heads(
        self, parts: tuple[Tensor, Tensor, Tensor], gains: tuple[Tensor, Tensor], rotation: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens = parts[0].shape[0]
        shape = (1, self._heads, tokens, self._width // self._heads)
        query, key, value = (torch.empty(shape, dtype=torch.float16, device=parts[0].device) for _ in range(3))
        self._run(
            "heads", (tokens, 3), self._threads,
            *map(_at, (*parts, *gains, rotation, query, key, value)), tokens, _between(*parts), eps,
        )  # fmt: skip
        return query, key, value

    def rms(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        self._run("rms", (x.shape[0],), self._threads, _at(x), _at(gain), _at(out), eps)
        return out

    def merge(self, attention: Tensor, step: Tensor | None) -> Tensor:
        tokens = attention.shape[2]
        out = _result((tokens, self._width), attention, step)
        strides = attention.stride(1), attention.stride(2)
        self._launch("merge", step, (tokens,), self._threads, _at(attention), _at(step), _at(out), *strides)
        return out

    def encode(self, x: Tensor, step: Tensor) -> Tensor:
        return self.merge(x[None].unflatten(2, (self._heads, -1)).transpose(1, 2), step)

    def gelu(self, x: Tensor, step: Tensor | None) -> Tensor:
        out, count = _result(tuple(x.shape), x, step), x.numel()
        grid = (-(-count // (OWN * _ELEMENTWISE)),)
        self._launch("gelu", step, grid, _ELEMENTWISE, _at(x), _at(step), _at(out), count)
        return out

    def _launch(
        self, entry: str, step: Tensor | None, grid: tuple[int, ...], threads: int, *arguments: Argument
    ) -> None:
        self._run(f"{entry}_{'halves' if step is None else 'codes'}", grid, threads, *arguments)

    def _run(self, entry: str, grid: tuple[int, ...], threads: int, *arguments: Argument) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        self._kernels.launch(stream, self.source, entry, grid, threads, *arguments)


def source_of(config: DenoiserConfig, compute_capability: tuple[int, int]) -> KernelSource:
    """What is compiled for a model and a GPU."""
    macros = (("WIDTH", config.dim), ("HEAD_DIM", config.head_dim), ("FP8", int(compute_capability >= CAPABILITY)))
    return KernelSource("denoiser_steps.cu", macros)


def _result(shape: tuple[int, ...], like: Tensor, step: Tensor | None) -> Tensor:
    dtype = torch.float16 if step is None else torch.float8_e4m3fn
    return torch.empty(shape, dtype=dtype, device=like.device)


def _at(tensor: Tensor | None) -> Pointer:
    """Neighbouring numbers are neighbours in memory; how far rows lie apart is told beside it."""
    if tensor is None:
        return _NOTHING
    assert tensor.ndim == 0 or tensor.stride(-1) == 1
    return Pointer(tensor.data_ptr())


def _between(*tensors: Tensor | None) -> int:
    """Numbers from row to row, the same for all; 0 for a single row that all frames share."""
    strides = {0 if tensor is None or tensor.ndim < 2 else tensor.stride(0) for tensor in tensors}
    (stride,) = strides
    return stride
