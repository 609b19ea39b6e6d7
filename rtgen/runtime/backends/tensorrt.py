"""Packages for NVIDIA GPUs: TensorRT for RTX and TensorRT, through the same code."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rtgen.engine import trt
from rtgen.engine.manifest import ComponentEntry, Manifest
from rtgen.errors import MemoryPlanError, PackageInvalidError, RtgenError, SizeError
from rtgen.plugins.cubins import FOLDER, read_cubins
from rtgen.plugins.registry import PLUGINS
from rtgen.plugins.tensorrt_plugin import PackageKernels, register
from rtgen.runtime.backends.arena import Arena
from rtgen.runtime.backends.buffers import BufferTable, check_copy
from rtgen.runtime.backends.device import CudaDevice, DeviceBuffer, Graph
from rtgen.runtime.profiles import choose_profile
from rtgen.runtime.session import Array, Session, check_write

if TYPE_CHECKING:
    from rtgen.engine.package import Package


def open_package(package: "Package") -> "TensorRTBackend":
    """The backend for a package of engines, on the first GPU of its compute capability."""
    compiler, target = package.manifest.compiler, package.manifest.target
    if compiler.name == "onnxruntime" or compiler.name == "torch" or target.compute_capability is None:
        raise PackageInvalidError(f"{package.path} holds no TensorRT engines")
    return TensorRTBackend(package, trt.load(compiler.name), CudaDevice(target.compute_capability))


class TensorRTBackend:
    """All components of a package on one device and one stream.

    Their engines take turns and share one arena, unless the manifest says that each has its own. One stream, and an
    arena in turns, are why this backend does not overlap (``rtgen.runtime.session.can_overlap``).
    """

    def __init__(self, package: "Package", module: trt.Module, device: CudaDevice) -> None:
        self.name = package.manifest.compiler.name
        self.device = device.name
        self._package = package
        self._module = module
        self._cuda = device
        self._lines = trt.LogLines()
        self._logger = trt.logger(module, self._lines)  # TensorRT keeps no reference
        self._runtime = module.Runtime(self._logger)
        self._kernels = _register_plugins(module, package)
        self._sessions: list[TensorRTSession] = []
        self._arenas: list[Arena] = []

    def open(self, component: str) -> "TensorRTSession":
        """Load an engine. Raises PackageInvalidError when it does not load or differs from the manifest's table."""
        manifest = self._package.manifest
        entry = manifest.components[component]  # type: ignore[index]  # a KeyError for any other name is right
        self._cuda.activate()
        data = (self._package.path / entry.file).read_bytes()
        engine = trt.deserialize(self._module, self._runtime, self._lines, data)
        _check_tensors(engine, entry)
        context = _create_context(self._module, engine)
        if context is None:
            raise MemoryPlanError(
                f"{self.device} has too little free memory for {entry.file}",
                hint="close other programs that use the GPU",
            )
        arena = self._arena()
        arena.reserve(int(engine.device_memory_size_v2))
        session = TensorRTSession(engine, context, self._cuda, arena, entry, manifest, self._lines, self._kernels)
        self._sessions.append(session)
        return session

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._sessions.clear()
        for arena in self._arenas:
            arena.close()
        self._arenas.clear()
        self._runtime = None
        self._cuda.close()

    def _arena(self) -> Arena:
        """The arena of an engine that is being opened."""
        if not self._arenas or not self._package.manifest.share_activations:
            self._arenas.append(Arena(self._cuda))
        return self._arenas[-1]


class TensorRTSession:
    """One engine, its execution context and its buffers.

    In-place states have one address for input and output. Swapped states take turns, so there is one CUDA graph for
    each turn: it is captured on the second run of that turn, when TensorRT has made all it makes lazily. Intermediate
    results lie in the arena, whose address is part of the graphs too.
    """

    def __init__(
        self,
        engine: Any,
        context: Any,
        device: CudaDevice,
        arena: Arena,
        component: ComponentEntry,
        manifest: Manifest,
        lines: trt.LogLines,
        kernels: PackageKernels,
    ) -> None:
        self.component = component
        self._engine = engine
        self._context = context
        self._device = device
        self._arena = arena
        self._block: DeviceBuffer | None = None
        self._manifest = manifest
        self._lines = lines
        self._kernels = kernels
        self._table: BufferTable[DeviceBuffer] | None = None
        self._graphs: dict[int, Graph] = {}
        self._warm: set[int] = set()
        self._capturable = True

    def allocate(self, sizes: Mapping[str, int]) -> None:
        self._device.activate()
        index = choose_profile(self._manifest.profiles, sizes, self._manifest.model.size_step)
        self._release()
        self._set_profile(min(index, self._engine.num_optimization_profiles - 1))
        self._table = BufferTable(self.component, sizes, self._allocate_tensor)
        self._set_shapes(self._table)
        self._lend(self._arena.block())
        self._capturable = True

    def write(self, name: str, value: Array) -> None:
        check_write(name, value, *self._buffers.specs[name])
        self._device.activate()
        self._device.upload(self._buffers.current(name), value)

    def copy(self, name: str, source: Session, source_name: str) -> None:
        if not isinstance(source, TensorRTSession):
            raise TypeError("copy() works between sessions of one backend")
        check_copy(name, self._buffers.specs[name], source._buffers.specs[source_name])
        self._device.activate()
        self._device.copy(self._buffers.current(name), source._buffers.current(source_name))

    def run(self) -> None:
        self._device.activate()
        table = self._buffers
        if self._arena.block() is not self._block:
            self._forget_graphs()
            self._lend(self._arena.block())
        graph = self._graphs.get(table.turn) or self._capture(table)
        if graph is not None:
            self._device.launch(graph)
        else:
            self._bind(table)
            self._kernels.failure = None
            if not self._context.execute_async_v3(self._device.stream):
                raise self._failed()
            self._warm.add(table.turn)
        table.advance()

    def read(self, name: str) -> Array:
        self._device.activate()
        return self._device.download(self._buffers.current(name), *self._buffers.specs[name])

    def reset(self) -> None:
        self._device.activate()
        for state in self._buffers.states():
            self._device.clear(state)

    def close(self) -> None:
        if self._engine is None:
            return
        self._device.activate()
        self._release()
        self._context = None
        self._engine = None

    @property
    def _buffers(self) -> BufferTable[DeviceBuffer]:
        if self._table is None:
            raise ValueError(f"{self.component.file} has no buffers: call allocate() first")
        return self._table

    def _allocate_tensor(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> DeviceBuffer:
        return self._device.allocate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)

    def _set_profile(self, index: int) -> None:
        if not self._context.set_optimization_profile_async(index, self._device.stream):
            raise RtgenError(f"{self.component.file} has no optimization profile {index}: {self._reason()}")
        self._device.wait()

    def _set_shapes(self, table: BufferTable[DeviceBuffer]) -> None:
        for tensor in self.component.inputs:
            shape = table.specs[tensor.name][0]
            if not self._context.set_input_shape(tensor.name, shape):
                raise SizeError(f"{self.component.file} takes no '{tensor.name}' of {list(shape)}: {self._reason()}")
        for tensor in self.component.outputs:
            # A larger output than the manifest says would be written past its buffer.
            inferred, planned = tuple(self._context.get_tensor_shape(tensor.name)), table.specs[tensor.name][0]
            if inferred != planned:
                raise PackageInvalidError(f"{self.component.file}: '{tensor.name}' is {inferred}, not {planned}")

    def _lend(self, block: DeviceBuffer | None) -> None:
        """Give the context the memory for its intermediate results."""
        self._block = block
        if block is not None:
            self._context.set_device_memory(block.address, block.size)

    def _bind(self, table: BufferTable[DeviceBuffer]) -> None:
        for name, buffer in table.bound(table.turn).items():
            if not self._context.set_tensor_address(name, buffer.address):
                raise RtgenError(f"{self.component.file} takes no buffer for '{name}': {self._reason()}")

    def _capture(self, table: BufferTable[DeviceBuffer]) -> Graph | None:
        """The CUDA graph of this turn, made now if it is time for it; None to enqueue without one."""
        if table.turn not in self._warm or not self._capturable:
            return None
        self._bind(table)
        graph = self._device.capture(self._context.execute_async_v3) if self._allows_capture() else None
        if graph is None:
            self._capturable = False
        else:
            self._graphs[table.turn] = graph
        return graph

    def _allows_capture(self) -> bool:
        # TensorRT for RTX tells; TensorRT is asked by trying.
        asks = getattr(self._context, "is_stream_capturable", None)
        return asks is None or bool(asks(self._device.stream))

    def _forget_graphs(self) -> None:
        self._device.wait()
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._warm.clear()

    def _release(self) -> None:
        self._forget_graphs()
        for buffer in self._table.all() if self._table else ():
            self._device.free(buffer)
        self._table = None

    def _failed(self) -> RtgenError:
        failure = self._kernels.failure
        if failure is None:
            return RtgenError(f"{self.component.file} failed: {self._reason()}")
        error = RtgenError(f"{self.component.file} failed: a plugin cannot be executed: {failure}")
        error.__cause__ = failure
        return error

    def _reason(self) -> str:
        return self._lines.errors[-1] if self._lines.errors else "TensorRT gave no reason"


def _register_plugins(module: trt.Module, package: "Package") -> PackageKernels:
    """Make TensorRT know the plugins that the package has kernels for, before any of its engines is loaded."""
    names = [name for name in package.manifest.files if name.startswith(f"{FOLDER}/")]
    target = package.manifest.target.compute_capability or ""
    kernels = PackageKernels(target, lambda: read_cubins(map(package.file, names)))
    if names:
        register(module, PLUGINS.values(), kernels)
    return kernels


def _check_tensors(engine: Any, component: ComponentEntry) -> None:
    """Names and types of the engine are those of the manifest; addresses are set by it."""
    planned = {tensor.name: tensor.dtype for tensor in (*component.inputs, *component.outputs)}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: trt.data_type_name(engine.get_tensor_dtype(name)) for name in names}
    if planned != found:
        different = sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))
        raise PackageInvalidError(
            f"{component.file} and its manifest disagree about {', '.join(different)}",
            hint="rtgen build makes it again",
        )


def _create_context(module: trt.Module, engine: Any) -> Any:
    """An execution context without memory of its own for intermediate results.

    TensorRT for RTX compiles kernels for a shape by need: do it before the stream starts.
    """
    managed = module.ExecutionContextAllocationStrategy.USER_MANAGED
    specializations = getattr(module, "DynamicShapesKernelSpecializationStrategy", None)
    if specializations is None:
        return engine.create_execution_context(managed)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(managed)
    config.dynamic_shapes_kernel_specialization_strategy = specializations.EAGER
    return engine.create_execution_context(config)
