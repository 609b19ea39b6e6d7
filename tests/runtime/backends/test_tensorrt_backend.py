"""The TensorRT backend against a TensorRT and a CUDA device made of numpy: everything but the GPU."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from rtgen.engine import trt
from rtgen.engine.manifest import CompilerEntry, FileEntry, TargetEntry
from rtgen.engine.memory_plan import estimate
from rtgen.engine.package import Package
from rtgen.errors import MemoryPlanError, MissingDependencyError, PackageInvalidError, RtgenError, SizeError
from rtgen.runtime.backends import tensorrt
from rtgen.runtime.backends.tensorrt import TensorRTBackend

STREAM = 77


class FakeDevice:
    """CUDA as numpy: an address is a key of ``memory``."""

    def __init__(self, *, captures=True, room=1 << 20):
        self.name, self.stream = "Fake GPU", STREAM
        self.memory, self.captures, self.room, self.log = {}, captures, room, []

    def allocate(self, size):
        if size > self.room:
            raise MemoryPlanError("too little free memory")
        self.room -= size
        address = 1000 + len(self.log)
        self.log.append("allocate")
        self.memory[address] = np.zeros(size, np.uint8)
        return SimpleNamespace(address=address, size=size)

    def free(self, buffer):
        self.room += buffer.size
        del self.memory[buffer.address]

    def clear(self, buffer):
        self.memory[buffer.address][:] = 0

    def upload(self, target, value):
        self.memory[target.address][:] = value.reshape(-1).view(np.uint8)

    def download(self, source, shape, dtype):
        return self.memory[source.address].view(dtype).reshape(shape).copy()

    def copy(self, target, source):
        self.memory[target.address][:] = self.memory[source.address]

    def capture(self, enqueue):
        self.log.append("capture")
        enqueue.__self__.capturing = True
        try:
            work = enqueue(STREAM)
        finally:
            enqueue.__self__.capturing = False
        return SimpleNamespace(work=work, close=lambda: self.log.append("close")) if self.captures else None

    def launch(self, graph):
        self.log.append("launch")
        graph.work()

    def activate(self):
        pass

    wait = close = activate


class FakeContext:
    """y = x + ring; ring' = ring + 1; cache' = cache + 1/2, on the addresses bound when it is enqueued."""

    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.capturing, self.fails = engine, {}, {}, False, False
        self.profile, self.scratch = None, (None, 0)

    def set_optimization_profile_async(self, index, stream):
        self.profile = index
        return stream == STREAM

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return shape[0] > 0

    def get_tensor_shape(self, name):
        return self.shapes[{"y": "x", "ring_next": "ring", "cache_next": "cache"}[name]]

    def set_device_memory(self, memory, size):
        assert self.shapes and len(self.engine.device.memory[memory]) >= size
        self.scratch = memory, size

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        if self.fails:
            return False
        memory = self.engine.device.memory
        x, ring, cache, y, ring_next, cache_next = (
            memory[self.addresses[name]].view(np.float32)
            for name in ("x", "ring", "cache", "y", "ring_next", "cache_next")
        )
        scratch, size = self.scratch
        assert size >= self.engine.device_memory_size_v2

        def work():
            if size:
                memory[scratch][:] += 1  # a KeyError if it was freed
            y[:] = x + ring
            ring_next[:] = ring + 1
            cache_next[:] = cache + 0.5

        if self.capturing:
            return work
        self.engine.device.log.append("enqueue")
        work()
        return True


class FakeEngine:
    device_memory_size_v2 = 64

    def __init__(self, device, tensors):
        self.device, self.tensors = device, tensors
        self.num_io_tensors, self.num_optimization_profiles = len(tensors), 2

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=self.tensors[name])

    def create_execution_context(self, config=None):
        self.context, self.config = FakeContext(self), config
        return None if self.device.room == 0 else self.context

    def create_runtime_config(self):
        config = SimpleNamespace()
        config.set_execution_context_allocation_strategy = lambda strategy: vars(config).update(memory=strategy)
        return config


TENSORS = dict.fromkeys(("x", "ring", "cache", "y", "ring_next", "cache_next"), "FLOAT")


class FakeTensorRT:
    """The module; ``engines`` maps the bytes of files to what they deserialize to."""

    __name__, __version__ = "tensorrt_rtx", "1.7.1"
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def __init__(self, engines):
        self.engines = engines

    def Runtime(self, logger):
        return SimpleNamespace(deserialize_cuda_engine=lambda data: self.engines[bytes(data)])


@pytest.fixture
def open_backend(tmp_path, make_manifest):
    """A backend of components that all are the same network, with the bytes of scratch memory each takes."""

    def open_(demands, tensors=TENSORS, share=True, kernels=(), **device):
        made = make_manifest(
            target=TargetEntry(gpu="rtx4080-laptop", compute_capability="8.9", vram_bytes=12 << 30),
            compiler=CompilerEntry(name="tensorrt_rtx", version="1.7.1"),
            share_activations=share,
        )
        table, fake, engines = made.components["denoiser"], FakeDevice(**device), {}
        for name, demand in demands.items():
            (tmp_path / f"{name}.onnx").write_bytes(name.encode())
            engines[name] = FakeEngine(fake, tensors)
            engines[name].device_memory_size_v2 = demand
        tables = {name: table.model_copy(update={"file": f"{name}.onnx"}) for name in demands}
        for name in kernels:
            (tmp_path / "kernels").mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(name.encode())
        files = {name: FileEntry(size=len(name), sha256="0" * 64) for name in kernels}
        manifest = made.model_copy(update={"components": tables, "files": files})
        module = FakeTensorRT({name.encode(): engine for name, engine in engines.items()})
        return TensorRTBackend(Package(tmp_path, manifest), module, fake), engines

    return open_


@pytest.fixture
def open_session(open_backend):
    def open_(tensors=TENSORS, **device):
        backend, engines = open_backend({"denoiser": 64}, tensors, **device)
        return backend.open("denoiser"), engines["denoiser"]

    return open_


def run(session, count):
    seen = []
    for _ in range(count):
        session.run()
        seen.append((session.read("y")[0, 0], session.read("ring")[0, 0], session.read("cache_next")[0]))
    return seen


@pytest.mark.parametrize("captures", [True, False])
def test_states_advance_with_and_without_graphs(open_session, captures):
    session, _ = open_session(captures=captures)
    session.allocate({"rows": 2, "columns": 4})
    session.write("x", np.full((1, 8), 10, np.float32))
    expected = [(10.0 + turn, 1.0 + turn, 0.5 * (turn + 1)) for turn in range(7)]
    assert run(session, 7) == expected
    session.reset()
    assert run(session, 2) == expected[:2]


def test_each_turn_is_warmed_up_captured_once_and_then_launched(open_session):
    session, engine = open_session()
    session.allocate({"rows": 2, "columns": 4})
    engine.device.log.clear()
    run(session, 6)
    assert engine.device.log == ["enqueue", "enqueue", "capture", "launch", "capture", "launch", "launch", "launch"]
    session.allocate({"rows": 2, "columns": 4})
    assert engine.device.log.count("close") == 2


def test_an_engine_that_cannot_be_captured_is_asked_once(open_session):
    session, engine = open_session(captures=False)
    session.allocate({"rows": 2, "columns": 4})
    engine.device.log.clear()
    run(session, 5)
    assert engine.device.log.count("capture") == 1
    assert engine.device.log.count("enqueue") == 5
    engine.context.is_stream_capturable = lambda stream: False
    session.allocate({"rows": 2, "columns": 4})
    run(session, 4)
    assert engine.device.log.count("capture") == 1


def test_in_place_states_share_an_address_and_swapped_ones_change_places(open_session):
    session, engine = open_session(captures=False)
    session.allocate({"rows": 2, "columns": 4})
    session.run()
    first = dict(engine.context.addresses)
    session.run()
    second = engine.context.addresses
    assert first["ring"] == first["ring_next"] == second["ring"]
    assert (first["cache"], first["cache_next"]) == (second["cache_next"], second["cache"])
    assert first["cache"] != first["cache_next"]


@pytest.mark.parametrize(("rows", "profile"), [(4, 0), (6, 1), (12, 1)])
def test_the_profile_tuned_for_the_size_is_chosen(open_session, rows, profile):
    session, engine = open_session()
    session.allocate({"rows": rows, "columns": rows})
    assert engine.context.profile == profile
    assert engine.config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert engine.config.memory == "user managed"


@pytest.mark.parametrize("share", [True, False])
def test_memory_is_given_back(open_backend, share):
    backend, engines = open_backend({"text_encoder": 8, "denoiser": 64}, share=share)
    sessions = [backend.open(name) for name in engines]
    for rows in (2, 4, 2):
        for session in sessions:
            session.allocate({"rows": rows, "columns": 4})
    for session in sessions:
        session.close()
        session.close()
    backend.close()
    assert engines["denoiser"].device.memory == {}


def scratch(engine):
    return engine.context.scratch


def test_engines_that_take_turns_share_one_arena_as_large_as_the_greatest_asks(open_backend):
    backend, engines = open_backend({"text_encoder": 8, "denoiser": 64, "decoder": 32})
    sessions = {name: backend.open(name) for name in engines}
    device = engines["denoiser"].device
    assert device.memory == {}  # contexts allocate nothing
    for session in sessions.values():
        session.allocate({"rows": 2, "columns": 4})
    ((address, size),) = {scratch(engine) for engine in engines.values()}
    assert size == 64 == len(device.memory[address])
    for session in sessions.values():
        assert run(session, 5)[-1] == (4.0, 5.0, 2.5)


def test_engines_that_may_overlap_have_an_arena_each(open_backend):
    demands = {"text_encoder": 8, "denoiser": 64, "decoder": 32}
    backend, engines = open_backend(demands, share=False)
    for name in engines:
        session = backend.open(name)
        session.allocate({"rows": 2, "columns": 4})
        run(session, 5)
    assert {name: scratch(engine)[1] for name, engine in engines.items()} == demands
    assert len({scratch(engine)[0] for engine in engines.values()}) == 3


@pytest.mark.parametrize("captures", [True, False])
def test_an_arena_that_grows_moves_the_engines_that_used_it(open_backend, captures):
    backend, engines = open_backend({"denoiser": 64, "decoder": 4096}, captures=captures)
    denoiser = backend.open("denoiser")
    denoiser.allocate({"rows": 2, "columns": 4})
    run(denoiser, 6)
    small = scratch(engines["denoiser"])
    decoder = backend.open("decoder")
    decoder.allocate({"rows": 2, "columns": 4})
    device = engines["decoder"].device
    assert small[0] not in device.memory
    # The graphs that were captured have the old address in them: running one would write to freed memory.
    assert run(denoiser, 6)[-1] == (11.0, 12.0, 6.0)
    assert scratch(engines["denoiser"]) == scratch(engines["decoder"]) and scratch(engines["decoder"])[1] == 4096
    if captures:
        assert device.log.count("close") == 2 and device.log[-1] == "launch"


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("demands", [{"denoiser": 64, "decoder": 96}, {"text_encoder": 8, "denoiser": 0}], ids=str)
def test_what_is_allocated_is_what_the_memory_plan_says(open_backend, demands, share):
    backend, engines = open_backend(demands, share=share)
    sizes = {"rows": 2, "columns": 4}
    sessions = [backend.open(name) for name in engines]
    for session in sessions:
        session.allocate(sizes)
    plan = estimate(
        {name: session.component for name, session in zip(engines, sessions, strict=True)},
        sizes, weights=dict.fromkeys(engines, 0), activations=demands, share_activations=share, vram=1 << 20, context=0,
    )  # fmt: skip
    assert sum(len(block) for block in engines["denoiser"].device.memory.values()) == plan.total > 0


def test_what_the_gpu_refuses_becomes_an_error_with_a_name(open_session):
    session, engine = open_session(room=100)
    with pytest.raises(SizeError, match="16x16"):
        session.allocate({"rows": 1, "columns": 1})
    with pytest.raises(MemoryPlanError):
        session.allocate({"rows": 4, "columns": 8})
    with pytest.raises(MemoryPlanError, match="too little"):
        open_session(room=0)
    session, engine = open_session()
    session.allocate({"rows": 2, "columns": 4})
    engine.context.fails = True
    with pytest.raises(RtgenError, match=r"denoiser\.onnx failed"):
        session.run()


@pytest.mark.parametrize("tensors", [TENSORS | {"x": "HALF"}, TENSORS | {"extra": "FLOAT"}, {"x": "FLOAT"}])
def test_an_engine_that_differs_from_its_manifest_is_refused(open_session, tensors):
    with pytest.raises(PackageInvalidError, match="disagree"):
        open_session(tensors)


def test_an_output_larger_than_planned_is_refused_before_it_overruns(open_session, monkeypatch):
    session, _ = open_session()
    monkeypatch.setattr(FakeContext, "get_tensor_shape", lambda self, name: (1, 999))
    with pytest.raises(PackageInvalidError, match="999"):
        session.allocate({"rows": 2, "columns": 4})


def test_the_calls_exist_in_the_installed_libraries():
    # No GPU is needed to notice an API that was renamed.
    try:
        module = trt.load("tensorrt_rtx")
    except MissingDependencyError:
        pytest.skip("TensorRT for RTX is not installed")
    for name in vars(FakeContext):
        if not name.startswith("_"):
            assert hasattr(module.IExecutionContext, name)
    assert hasattr(module.IExecutionContext, "is_stream_capturable")
    for name in vars(FakeEngine):
        if not name.startswith("_"):
            assert hasattr(module.ICudaEngine, name)
    assert hasattr(module.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert hasattr(module.IRuntimeConfig, "set_execution_context_allocation_strategy")
    assert hasattr(module.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(module.ExecutionContextAllocationStrategy, "USER_MANAGED")

    core = pytest.importorskip("cuda.core", exc_type=ImportError)
    for owner, names in {
        core.Device: "get_all_devices set_current create_stream allocate device_id compute_capability name",
        core.Stream: "handle sync close is_closed record create_graph_builder",
        core.Buffer: "handle fill copy_from copy_to close __dlpack__",
        core.graph.GraphBuilder: "begin_building end_building complete close stream",
        core.graph.Graph: "launch close",
        core.LegacyPinnedMemoryResource: "allocate",
    }.items():
        for name in names.split():
            assert hasattr(owner, name), (owner, name)


@pytest.fixture
def registered(monkeypatch):
    """What is registered as plugins."""
    seen = []
    monkeypatch.setattr(tensorrt, "register", lambda module, plugins, kernels: seen.append((tuple(plugins), kernels)))
    return seen


def test_plugins_and_the_packages_cubins_are_registered_before_an_engine_is_loaded(open_backend, registered):
    names = ("kernels/scale-tile64.cubin", "kernels/sum.cubin")
    backend, _ = open_backend({"denoiser": 64}, kernels=names)
    ((plugins, kernels),) = registered
    assert {plugin.name for plugin in plugins} >= {"W4A4Linear", "AttentionConv"}
    assert kernels.compute_capability == "8.9"
    assert kernels._read() == {"scale-tile64": names[0].encode(), "sum": names[1].encode()}
    backend.open("denoiser")
    assert len(registered) == 1


def test_a_package_without_kernels_registers_nothing(open_backend, registered):
    open_backend({"denoiser": 64})[0].open("denoiser")
    assert not registered


def test_why_a_plugin_cannot_be_executed_is_said(open_backend, registered):
    backend, engines = open_backend({"denoiser": 64}, kernels=("kernels/sum.cubin",))
    session, kernels = backend.open("denoiser"), registered[0][1]
    session.allocate({"rows": 2, "columns": 4})
    context = engines["denoiser"].context
    context.execute_async_v3 = lambda stream: setattr(kernels, "failure", ValueError("no such tile"))
    with pytest.raises(RtgenError, match="a plugin cannot be executed: no such tile") as caught:
        session.run()
    assert isinstance(caught.value.__cause__, ValueError)
    context.execute_async_v3 = lambda stream: False  # for another reason
    with pytest.raises(RtgenError, match="TensorRT gave no reason"):
        session.run()


def test_the_runtime_loads_plugins_without_torch_and_onnx():
    code = (
        "import sys; import rtgen.runtime.backends.tensorrt as backend; "
        "assert any(plugin.kernel for plugin in backend.PLUGINS.values()); "
        "sys.exit(str([name for name in ('torch', 'onnx', 'onnx_ir') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == "[]"
