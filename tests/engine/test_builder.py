"""Building real engines in a worker process, and what happens when that process goes wrong."""

import json
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtgen.engine import trt
from rtgen.engine.builder import EngineJob, build_engine, worker_environment
from rtgen.engine.exit_status import describe_exit
from rtgen.engine.phases import PhaseProgress
from rtgen.errors import BuildError, MissingDependencyError
from rtgen.progress import SilentProgress

onnx = pytest.importorskip("onnx")
needs_rtx = pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")

PROFILES = (
    {"x": ((1, 8, 64), (1, 16, 64), (1, 32, 64))},
    {"x": ((1, 8, 64), (1, 64, 64), (1, 128, 64))},
)
WEIGHT = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)


class Recorder:
    def __init__(self) -> None:
        self.updates: list[tuple[str, float | None, str]] = []

    def update(self, stage: str, fraction: float | None, detail: str = "") -> None:
        self.updates.append((stage, fraction, detail))

    def note(self, message: str) -> None:
        pass


def model(body: str, *initializers):
    graph = onnx.parser.parse_model(
        f'<ir_version: 11, opset_import: ["" : 24]>\n'
        f"net (float16[1,tokens,64] x) => (float16[1,tokens,64] y) {{ {body} }}"
    )
    graph.graph.initializer.extend(initializers)
    return graph


@pytest.fixture
def job(tmp_path: Path) -> EngineJob:
    path = tmp_path / "net.onnx"
    path.write_bytes(
        model("m = MatMul(x, w) y = Add(m, x)", onnx.numpy_helper.from_array(WEIGHT, "w")).SerializeToString()
    )
    return EngineJob(
        name="net",
        flavour="tensorrt_rtx",
        onnx=path,
        weights=tmp_path,
        output=tmp_path / "out" / "net.engine",
        compute_capability="8.9",
        profiles=PROFILES,
    )


def leftovers(job: EngineJob) -> list[str]:
    return [path.name for path in job.output.parent.iterdir()] if job.output.parent.exists() else []


@needs_rtx
@pytest.mark.parametrize("capability", ["7.5", "8.6", "8.9", "12.0"])
def test_an_engine_is_built_without_a_gpu_and_progress_never_falls(job: EngineJob, capability: str):
    recorder = Recorder()
    result = build_engine(replace(job, compute_capability=capability), recorder, stage="engine: net")
    assert result.path == job.output and result.size == job.output.stat().st_size
    assert result.weights_bytes >= WEIGHT.nbytes
    assert result.activation_bytes > 0 and result.layers >= 2
    assert leftovers(job) == ["net.engine"]
    assert {stage for stage, _, _ in recorder.updates} == {"engine: net"}
    fractions = [fraction for _, fraction, _ in recorder.updates]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(fractions) > 5


@needs_rtx
def test_weights_may_lie_in_a_safetensors_file_in_another_folder(job: EngineJob, tmp_path: Path):
    header = json.dumps({"w": {"dtype": "F16", "shape": [64, 64], "data_offsets": [0, WEIGHT.nbytes]}}).encode()
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + WEIGHT.tobytes())
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT16, dims=WEIGHT.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    places = {"location": "w.safetensors", "offset": str(8 + len(header)), "length": str(WEIGHT.nbytes)}
    for key, value in places.items():
        tensor.external_data.add(key=key, value=value)
    job.onnx.write_bytes(model("y = MatMul(x, w)", tensor).SerializeToString())
    build_engine(replace(job, weights=folder), SilentProgress(), stage="engine")
    assert WEIGHT.tobytes() in job.output.read_bytes()


@needs_rtx
def test_a_node_that_the_parser_refuses_is_named(job: EngineJob):
    body = "half = Cast<to=2>(x) t = Transpose<perm=[0,1,2]>(half) y = Cast<to=10>(t)"
    job.onnx.write_bytes(model(body).SerializeToString())
    with pytest.raises(BuildError, match="Cast") as caught:
        build_engine(job, SilentProgress(), stage="engine")
    assert "UINT8" in caught.value.message and "\n" not in caught.value.message
    assert caught.value.hint and caught.value.log
    assert leftovers(job) == []


@needs_rtx
def test_a_profile_for_an_unknown_input_is_refused(job: EngineJob):
    bad = replace(job, profiles=({"z": PROFILES[0]["x"]},))
    with pytest.raises(BuildError, match="profile 0 names inputs that net lacks: z"):
        build_engine(bad, SilentProgress(), stage="engine")


@needs_rtx
def test_a_gpu_that_the_compiler_does_not_serve_is_refused_before_anything_starts(job: EngineJob):
    with pytest.raises(MissingDependencyError, match=r"9\.0"):
        build_engine(
            replace(job, compute_capability="9.0"), SilentProgress(), stage="engine", worker=["no such command"]
        )


def worker(code: str) -> list[str]:
    """A stand-in for the worker: it has read ``job`` and can ``say`` events."""
    head = """
        import json, os, signal, sys, time
        from pathlib import Path
        job = json.load(sys.stdin)
        Path(job["partial"]).write_bytes(b"half an engine")
        def say(event, **fields):
            print(json.dumps({"event": event, **fields}), flush=True)
    """
    return [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)]


def fail(job: EngineJob, code: str, timeout: float | None = None) -> BuildError:
    with pytest.raises(BuildError) as caught:
        build_engine(job, SilentProgress(), stage="engine", worker=worker(code), timeout=timeout)
    assert leftovers(job) == []
    return caught.value


@needs_rtx
@pytest.mark.skipif(sys.platform == "win32", reason="names POSIX signals")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('terminate called', file=sys.stderr, flush=True); os.abort()", "aborted (SIGABRT)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed (SIGKILL), most often for want of memory"),
        ("sys.exit(0)", "ended without a result"),
    ],
)
def test_the_death_of_the_worker_is_named_and_leaves_nothing(job: EngineJob, code: str, expected: str):
    error = fail(job, code)
    assert expected in error.message and error.hint
    if "terminate" in code:
        assert "terminate called" in error.log


@needs_rtx
def test_only_the_last_lines_of_a_long_log_are_kept(job: EngineJob):
    error = fail(
        job,
        """
        print("not an event", flush=True)
        for number in range(40):
            say("log", severity="info", line=f"line {number}")
        say("error", message="it broke", hint=None)
        """,
    )
    assert error.message == "it broke"
    assert error.log == tuple(f"line {number}" for number in range(25, 40))


@needs_rtx
def test_a_result_without_its_file_is_not_believed(job: EngineJob):
    error = fail(job, "say('result', size=3, weights_bytes=0, activation_bytes=0, layers=1)")
    assert "not whole" in error.message


@needs_rtx
def test_a_worker_that_takes_too_long_is_stopped(job: EngineJob):
    assert "time limit" in fail(job, "time.sleep(60)", timeout=0.5).message


@needs_rtx
def test_an_interruption_stops_the_worker_and_removes_its_file(job: EngineJob):
    class Interrupted(Recorder):
        def update(self, stage: str, fraction: float | None, detail: str = "") -> None:
            assert any(name.endswith(".partial") for name in leftovers(job))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        code = "say('progress', fraction=0.5, detail='half'); time.sleep(60)"
        build_engine(job, Interrupted(), stage="engine", worker=worker(code))
    assert leftovers(job) == []
    assert threading.active_count() < 8


@needs_rtx
@pytest.mark.skipif(sys.platform != "linux", reason="a matter of the Linux loader")
def test_the_library_has_its_plain_name_on_the_loaders_path_while_the_worker_runs():
    with worker_environment() as environment:
        folder = Path(environment["LD_LIBRARY_PATH"].split(":")[0])
        assert (folder / "libtensorrt_rtx.so").resolve().is_file()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (3221225477, "access violation"),
        (3221225477 - (1 << 32), "access violation"),
        (0xC0000409, "aborted"),
        (0xC0000135, "DLL"),
        (7, "exit status 7"),
    ],
)
def test_windows_exit_codes_are_put_in_words(status: int, expected: str):
    assert expected in describe_exit(status)[0]


@st.composite
def phase_calls(draw: st.DrawFn) -> list[Callable[[PhaseProgress], float]]:
    """A build as TensorRT reports one: nested phases, with steps reported late or not at all."""
    calls: list[Callable[[PhaseProgress], float]] = []

    def phase(name: str, depth: int) -> None:
        steps = draw(st.integers(1, 4))
        calls.append(lambda progress: progress.start(name, steps))
        for _ in range(draw(st.integers(0, steps))):
            for child in range(draw(st.integers(0, 2)) if depth < 3 else 0):
                phase(f"{name}.{child}", depth + 1)
            calls.append(lambda progress: progress.step(name))
        calls.append(lambda progress: progress.finish(name))

    phase("build", 0)
    return calls


@given(phase_calls())
def test_phases_become_one_fraction_that_rises_to_one(calls: list[Callable[[PhaseProgress], float]]):
    progress = PhaseProgress()
    fractions = [call(progress) for call in calls]
    assert fractions == sorted(fractions)
    assert all(fraction <= 1 for fraction in fractions)
    assert fractions[-1] == 1.0
    assert all(fraction < 1 for fraction in fractions[:1])
