"""Where a session's work is enqueued: a CUDA stream of its own with its graphs, or simply here, on the processor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rtgen.errors import MemoryPlanError
from rtgen.runtime.session import Array

Work = Callable[[], None]


class Lane(Protocol):
    """Work is executed in call order; only :meth:`download` waits for it."""

    device: torch.device

    def entered(self) -> AbstractContextManager[None]:
        """Within it torch's work goes into this lane, and gradients are off."""

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """A buffer. Raises MemoryPlanError when there is too little memory."""

    def upload(self, target: Tensor, value: Array) -> None:
        """Enqueue a copy of a host array, which may change as soon as this returns."""

    def download(self, source: Tensor) -> Array:
        """Wait for all work, and return a buffer as a new host array."""

    def follow(self, other: Lane) -> None:
        """Let work enqueued from now on begin after all that ``other`` has been given."""

    def execute(self, kind: int, work: Work) -> None:
        """Enqueue ``work``; calls of one kind do the same to the same buffers until :meth:`release`."""

    def release(self) -> None:
        """Wait for all work, and forget what belongs to the present buffers. Idempotent."""


class HostLane:
    """The processor: work is done when it is enqueued."""

    device = torch.device("cpu")

    def entered(self) -> AbstractContextManager[None]:
        return torch.inference_mode()

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        return zeros(shape, dtype, self.device, "this machine")

    def upload(self, target: Tensor, value: Array) -> None:
        np.copyto(target.numpy(), value)

    def download(self, source: Tensor) -> Array:
        array: Array = source.numpy().copy()
        return array

    def follow(self, other: Lane) -> None:
        pass

    def execute(self, kind: int, work: Work) -> None:
        with self.entered():
            work()

    def release(self) -> None:
        pass


ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Best first, of those that take the inputs: over long rings cuDNN's kernels are the fastest on Hopper."""


@dataclass
class _Staging:
    """Pinned host memory of a buffer's size, and what marks the end of the last copy out of it."""

    pinned: Tensor
    uploaded: torch.cuda.Event | None = None

    @property
    def array(self) -> Array:
        array: Array = self.pinned.numpy()
        return array


@dataclass
class CudaGpu:
    """A device that several lanes share. The lock is held while work is enqueued, never while it is waited for: what
    one thread captures must not be mixed with what another enqueues."""

    device: torch.device
    name: str
    lock: threading.RLock = field(default_factory=threading.RLock)


class CudaLane:
    """A stream. A capturable kind of work becomes a CUDA graph when it comes for the second time."""

    def __init__(self, gpu: CudaGpu, *, captures: bool) -> None:
        self.device = gpu.device
        self._gpu, self._captures = gpu, captures
        self.stream = torch.cuda.Stream(gpu.device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._warm: set[int] = set()
        self._staging: dict[int, _Staging] = {}
        self._pool = torch.cuda.graph_pool_handle()  # graphs of one stream never run at once

    @contextmanager
    def entered(self) -> Iterator[None]:
        with (
            self._gpu.lock,
            torch.cuda.stream(self.stream),
            torch.inference_mode(),
            sdpa_kernel(ATTENTION, set_priority=True),
        ):
            yield

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        with self.entered():
            return zeros(shape, dtype, self.device, self._gpu.name)

    def upload(self, target: Tensor, value: Array) -> None:
        staging = self._staging_of(target)
        if staging.uploaded is not None:
            staging.uploaded.synchronize()
        np.copyto(staging.array, value)
        with self.entered():
            target.copy_(staging.pinned, non_blocking=True)
            staging.uploaded = staging.uploaded or torch.cuda.Event()
            staging.uploaded.record(self.stream)

    def download(self, source: Tensor) -> Array:
        staging = self._staging_of(source)
        with self.entered():
            staging.pinned.copy_(source, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self.stream)
        done.synchronize()
        return staging.array.copy()

    def follow(self, other: Lane) -> None:
        if isinstance(other, CudaLane) and other is not self:
            with self._gpu.lock:
                self.stream.wait_stream(other.stream)

    def execute(self, kind: int, work: Work) -> None:
        with self.entered():
            graph = self.graphs.get(kind) or self._captured(kind, work)
            if graph is not None:
                graph.replay()
                return
            try:
                work()
            except torch.OutOfMemoryError as error:
                raise too_little_memory(self._gpu.name) from error
            self._warm.add(kind)

    def release(self) -> None:
        self.stream.synchronize()
        with self._gpu.lock:
            self.graphs.clear()
            self._warm.clear()
            self._staging.clear()

    def _captured(self, kind: int, work: Work) -> torch.cuda.CUDAGraph | None:
        """The graph of ``work``, once libraries have made in a first run all that they make lazily; else None."""
        if kind not in self._warm or not self._captures:
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may wait for their own work meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError:  # plain enqueueing remains, and reports what is really wrong
            self._captures = False
            return None
        self.graphs[kind] = graph
        return graph

    def _staging_of(self, buffer: Tensor) -> _Staging:
        found = self._staging.get(buffer.data_ptr())
        if found is None:
            pinned = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True)
            found = self._staging[buffer.data_ptr()] = _Staging(pinned)
        return found


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any], device: torch.device, name: str) -> Tensor:
    """Zeros on a device. Raises MemoryPlanError, which calls it ``name``, when it has too little memory."""
    try:
        return torch.zeros(shape, dtype=getattr(torch, dtype.name), device=device)
    except torch.OutOfMemoryError as error:
        raise too_little_memory(name) from error
    except RuntimeError as error:  # the processor's allocator has no class of its own
        if "memory" not in str(error) and "overflow" not in str(error):
            raise
        raise too_little_memory(name) from error


def too_little_memory(name: str) -> MemoryPlanError:
    """The error for a device that has no room."""
    return MemoryPlanError(f"{name} has too little free memory", hint="close other programs that use it")
