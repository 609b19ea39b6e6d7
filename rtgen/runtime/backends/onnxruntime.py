"""Packages for machines without an NVIDIA GPU, and host components of others: ONNX Runtime on the processor."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import numpy as np

from rtgen.engine.manifest import ComponentEntry, Manifest
from rtgen.errors import MemoryPlanError, MissingDependencyError, PackageInvalidError, RtgenError
from rtgen.runtime.backends.buffers import BufferTable, check_copy, zeros
from rtgen.runtime.cpu import thread_count
from rtgen.runtime.profiles import choose_profile
from rtgen.runtime.session import Array, Session, check_write

if TYPE_CHECKING:
    from rtgen.engine.package import Package


def open_package(package: "Package") -> "OnnxRuntimeBackend":
    """The backend for a package of ONNX files."""
    return OnnxRuntimeBackend(package)


FOLDED_BYTES: Final = 1 << 20
"""Of a constant that ONNX Runtime may compute when it loads a host component: tables and masks, but no weights."""


OVERLAP_THREADS: Final = 4
"""From as many cores on denoising and decoding overlap. Two cores are busy with one component (docs/run.md#overlap)."""


class OnnxRuntimeBackend:
    """Runs each component with all cores. Threads do not spin, so two components at once share the cores peacefully."""

    name = "onnxruntime"

    def __init__(self, package: "Package", threads: int | None = None) -> None:
        """``threads``: how many to use, instead of one for each physical core this process may use."""
        self._package = package
        self._runtime = _import()
        self._threads = threads or thread_count()
        self.overlaps = self._threads >= OVERLAP_THREADS
        self._sessions: WeakSet[OnnxRuntimeSession] = WeakSet()  # a host component is opened again for each prompt
        self.device = f"CPU, {self._threads} thread{'s' if self._threads > 1 else ''}"

    def open(self, component: str) -> "OnnxRuntimeSession":
        """Load a component. Raises PackageInvalidError for a file that ONNX Runtime does not accept."""
        manifest = self._package.manifest
        entry = manifest.components[component]  # type: ignore[index]  # a KeyError for any other name is right
        # By path: external weights are then mapped from the package folder instead of copied.
        path = str(self._package.path / entry.file)
        options = _options(self._runtime, self._threads)
        if entry.runs_on == "host":
            _keep_weights_mapped(options)
        try:
            native = self._runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # every failure of the library is its own class, derived from Exception
            version = self._runtime.__version__
            made = f"made for ONNX Runtime {manifest.compiler.version}; " if manifest.compiler.name == self.name else ""
            raise PackageInvalidError(
                f"ONNX Runtime {version} cannot load {entry.file}: {_first_line(error)}",
                hint=f"{made}rtgen build --gpu {manifest.target.gpu}",
            ) from error
        session = OnnxRuntimeSession(self._runtime, native, entry, manifest)
        self._sessions.add(session)
        return session

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._sessions.clear()


class OnnxRuntimeSession:
    """One ONNX graph and its buffers, which are numpy arrays that ONNX Runtime works on directly.

    The output of an in-place state is bound to its input's memory: ONNX Runtime's TensorScatter then writes the new
    rows only, and copies the whole tensor where the two differ.
    """

    def __init__(self, runtime: Any, native: Any, component: ComponentEntry, manifest: Manifest) -> None:
        self.component = component
        self._runtime = runtime
        self._native = native
        self._manifest = manifest
        self._table: BufferTable[Array] | None = None
        self._bindings: list[Any] = []

    def allocate(self, sizes: Mapping[str, int]) -> None:
        choose_profile(self._manifest.profiles, sizes, self._manifest.model.size_step)
        self._table, self._bindings = None, []  # the old buffers make room for the new ones
        try:
            self._table = BufferTable(self.component, sizes, zeros)
        except MemoryError as error:
            raise MemoryPlanError(f"too little memory for {self.component.file} at {dict(sizes)}") from error
        self._bindings = [self._bind(self._table.bound(turn)) for turn in range(self._table.turns)]

    def write(self, name: str, value: Array) -> None:
        target = self._buffers.current(name)
        check_write(name, value, target.shape, target.dtype)
        np.copyto(target, value)

    def copy(self, name: str, source: Session, source_name: str) -> None:
        if not isinstance(source, OnnxRuntimeSession):
            raise TypeError("copy() works between sessions of one backend")
        check_copy(name, self._buffers.specs[name], source._buffers.specs[source_name])
        np.copyto(self._buffers.current(name), source._buffers.current(source_name))

    def run(self) -> None:
        table = self._buffers
        try:
            self._native.run_with_iobinding(self._bindings[table.turn])
        except Exception as error:  # see open()
            raise RtgenError(f"{self.component.file} failed: {_first_line(error)}") from error
        table.advance()

    def read(self, name: str) -> Array:
        return self._buffers.current(name).copy()

    def reset(self) -> None:
        for state in self._buffers.states():
            state.fill(0)

    def close(self) -> None:
        self._table, self._bindings, self._native = None, [], None

    @property
    def _buffers(self) -> BufferTable[Array]:
        if self._table is None:
            raise ValueError(f"{self.component.file} has no buffers: call allocate() first")
        return self._table

    def _bind(self, buffers: Mapping[str, Array]) -> Any:
        binding = self._native.io_binding()
        for tensor in self.component.inputs:
            binding.bind_ortvalue_input(tensor.name, self._runtime.OrtValue.ortvalue_from_numpy(buffers[tensor.name]))
        for tensor in self.component.outputs:
            binding.bind_ortvalue_output(tensor.name, self._runtime.OrtValue.ortvalue_from_numpy(buffers[tensor.name]))
        return binding


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"ONNX Runtime does not load: {error}", hint="pip install onnxruntime") from error
    return onnxruntime


def _options(runtime: Any, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors come as exceptions; warnings are about the graph, not for users
    # Spinning threads win an eighth on an idle machine, and lose half as soon as anything else runs: the encoder of
    # frames, another program, or the threads of the session before this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _keep_weights_mapped(options: Any) -> None:
    """Leave stored weights where they are: half precision in the file, converted when used and then forgotten.

    By default ONNX Runtime converts all of them when it loads, by two ways: it folds the Casts, and it has a pass that
    is for float16 initializers alone. Its arena would keep the greatest use until the process ends.
    """
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(FOLDED_BYTES))
    options.add_session_config_entry(
        "optimization.disable_specified_optimizers", "FuseFp16InitializerToFp32NodeTransformer"
    )
    options.enable_cpu_mem_arena = False


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
