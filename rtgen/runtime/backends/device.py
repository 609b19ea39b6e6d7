"""One CUDA device with one stream: the few operations that a backend needs, on top of cuda-core.

cuda-core is imported when a device is opened. All work is enqueued on one stream, so it happens in call order.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rtgen.errors import MemoryPlanError, MissingDependencyError, NoGpuError, PackageMismatchError
from rtgen.runtime.session import Array


@dataclass
class DeviceBuffer:
    """Device memory, and pinned host memory of the same size once something was copied from or to the host."""

    native: Any
    size: int
    """Bytes."""
    staging: Any = None
    copied: Any = None
    """Event that marks the end of the last upload: the staging memory is free again after it."""

    @property
    def address(self) -> int:
        return int(self.native.handle)


class Graph(Protocol):
    """A captured execution."""

    def launch(self, stream: Any) -> None: ...

    def close(self) -> None: ...


class CudaDevice:
    """The first GPU of a compute capability. Methods may be called from any thread, one at a time."""

    def __init__(self, compute_capability: str) -> None:
        """Raises MissingDependencyError without cuda-core, NoGpuError without a driver, PackageMismatchError."""
        self._cuda = _import()
        self._device = _find(self._cuda, compute_capability)
        self.name: str = self._device.name
        self._index = int(self._device.device_id)
        self._device.set_current()
        self._stream = self._device.create_stream()  # non-blocking: independent of the default stream
        self._pinned = self._cuda.LegacyPinnedMemoryResource()
        self.stream = int(self._stream.handle)
        """Address of the CUDA stream, as TensorRT takes it."""

    def activate(self) -> None:
        """Make the device current in the calling thread."""
        self._cuda.Device(self._index).set_current()

    def allocate(self, size: int) -> DeviceBuffer:
        """Device memory of ``size`` bytes, cleared. Raises MemoryPlanError when there is too little."""
        try:
            buffer = DeviceBuffer(self._device.allocate(size, stream=self._stream), size)
            self.clear(buffer)
        except Exception as error:  # cuda-core keeps its error class private
            if "OUT_OF_MEMORY" not in str(error):
                raise
            raise MemoryPlanError(
                f"{self.name} has too little free memory ({size / 2**20:.0f} MiB more are needed)",
                hint="close other programs that use the GPU",
            ) from error
        return buffer

    def free(self, buffer: DeviceBuffer) -> None:
        """Release a buffer once the work enqueued so far is done."""
        if buffer.staging is not None:
            self.wait()
            buffer.staging.close()
        buffer.native.close(self._stream)

    def clear(self, buffer: DeviceBuffer) -> None:
        """Enqueue filling a buffer with zero bytes."""
        buffer.native.fill(0, stream=self._stream)

    def upload(self, target: DeviceBuffer, value: Array) -> None:
        """Enqueue a copy of a host array, which may change as soon as this returns."""
        if target.copied is not None:
            target.copied.sync()
        host = self._staging(target)
        np.copyto(host, np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        target.native.copy_from(target.staging, stream=self._stream)
        target.copied = self._stream.record(target.copied)

    def download(self, source: DeviceBuffer, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array:
        """Wait for all work, and return a buffer as a new host array."""
        host = self._staging(source)
        source.native.copy_to(source.staging, stream=self._stream)
        self.wait()
        return host.view(dtype).reshape(shape).copy()

    def copy(self, target: DeviceBuffer, source: DeviceBuffer) -> None:
        """Enqueue a copy between buffers of one size."""
        target.native.copy_from(source.native, stream=self._stream)

    def capture(self, enqueue: Callable[[int], bool]) -> Graph | None:
        """What ``enqueue(stream)`` enqueues, as a graph; None when that cannot be captured. Nothing is executed."""
        builder = self._stream.create_graph_builder()
        try:
            builder.begin_building()
            try:
                enqueued = enqueue(int(builder.stream.handle))
            finally:
                builder.end_building()
            graph: Graph | None = builder.complete() if enqueued else None
            return graph
        except Exception:  # plain enqueueing remains, and reports what is really wrong
            return None
        finally:
            # After an invalidated capture, close() reports that once more.
            with suppress(Exception):
                builder.close()

    def launch(self, graph: Graph) -> None:
        """Enqueue a captured execution."""
        graph.launch(self._stream)

    def wait(self) -> None:
        """Wait for everything that was enqueued."""
        self._stream.sync()

    def close(self) -> None:
        """Release the stream. Idempotent."""
        if not self._stream.is_closed:
            self._stream.sync()
            self._stream.close()

    def _staging(self, buffer: DeviceBuffer) -> Array:
        """The pinned memory of a buffer as bytes: uint8 [size]."""
        if buffer.staging is None:
            buffer.staging = self._pinned.allocate(buffer.size)
        return np.from_dlpack(buffer.staging).view(np.uint8)


def _import() -> Any:
    try:
        import cuda.core
    except ImportError as error:
        raise MissingDependencyError(
            f"cuda-core does not load: {error}", hint='pip install "cuda-core[cu13]"'
        ) from error
    return cuda.core


def _find(cuda: Any, compute_capability: str) -> Any:
    try:
        devices = cuda.Device.get_all_devices()
    except Exception as error:  # cuda-core keeps its error class private
        raise NoGpuError(f"the NVIDIA driver does not answer: {error}", hint="rtgen doctor shows more") from error
    for device in devices:
        if "{}.{}".format(*device.compute_capability) == compute_capability:
            return device
    if not devices:
        raise NoGpuError("this machine has no NVIDIA GPU with a working driver", hint="rtgen run --gpu cpu")
    raise PackageMismatchError(
        f"no GPU here has compute capability {compute_capability}", hint="rtgen gpu ls shows the ones to build for"
    )
