"""Building engines in a worker process, seen from the side of the caller."""

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from uuid import uuid4

import rtgen
from rtgen.engine import trt
from rtgen.engine.exit_status import describe_exit
from rtgen.engine.trt import Flavour
from rtgen.errors import BuildError, MissingDependencyError
from rtgen.progress import Progress

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
"""Least, best and greatest shape of an input in one optimization profile."""

_LOG_LINES = 200
_SHOWN_LINES = 15
_POLL_SECONDS = 0.2
"""Windows delivers Ctrl-C only between waits, so no wait may be long."""
_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class EngineJob:
    """What to build, and where to put it."""

    name: str
    """The component, such as ``denoiser``."""
    flavour: Flavour
    onnx: Path
    weights: Path
    """The folder that external data of the ONNX file is named relative to; may be another than the file's own."""
    output: Path
    compute_capability: str
    """As ``major.minor``."""
    profiles: tuple[Mapping[str, Range], ...] = ()
    """One entry per optimization profile, in order; inputs without dynamic dimensions may be left out."""
    kernels: Path | None = None
    """The folder with the cubins of plugins; it need not exist where the graph has none."""


@dataclass(frozen=True)
class EngineResult:
    """A finished engine."""

    path: Path
    size: int
    """Bytes of the file."""
    weights_bytes: int
    activation_bytes: int
    """Device memory for intermediate results at the greatest profile, as the compiler reports it."""
    seconds: float
    layers: int
    """Layers of the network before optimization."""
    plugins: Mapping[str, int]
    """How many of them are plugins, by name."""
    log: tuple[str, ...]
    """Warnings and errors of the compiler."""


def build_engine(
    job: EngineJob,
    progress: Progress,
    *,
    stage: str,
    timeout: float | None = None,
    worker: Sequence[str] | None = None,
) -> EngineResult:
    """Build one engine in a child process and wait for it.

    ``job.output`` appears complete or not at all; when anything fails, Ctrl-C included, the child is stopped and its
    partial file removed. ``timeout`` is in seconds. ``worker`` is another command for the child, for tests.

    Raises MissingDependencyError when the compiler is absent or does not serve the GPU, BuildError for all else.
    """
    _require(job)
    partial = job.output.with_name(f".{job.output.name}.{uuid4().hex[:8]}.partial")
    job.output.parent.mkdir(parents=True, exist_ok=True)
    command = list(worker) if worker is not None else [sys.executable, "-P", "-m", "rtgen.engine.worker"]
    try:
        with worker_environment(job.flavour) as environment, _child(command, environment) as child:
            return _Build(job, progress, stage, child).run(job_message(job, partial), timeout)
    finally:
        partial.unlink(missing_ok=True)


def _require(job: EngineJob) -> None:
    traits = trt.TRAITS[job.flavour]
    if trt.installed_version(job.flavour) is None:
        raise MissingDependencyError(f"{traits.title} is not installed", hint=traits.install)
    if reason := trt.unsupported_reason(job.flavour, job.compute_capability):
        raise MissingDependencyError(reason, hint="rtgen gpu ls shows the GPUs and their compilers")


def job_message(job: EngineJob, partial: Path) -> bytes:
    """The job as the worker reads it. ``partial`` is the file to write before it gets its real name."""
    fields = {
        "name": job.name,
        "flavour": job.flavour,
        "onnx": str(job.onnx.absolute()),
        "weights": str(job.weights.absolute()),
        "partial": str(partial.absolute()),
        "output": str(job.output.absolute()),
        "compute_capability": job.compute_capability,
        "kernels": None if job.kernels is None else str(job.kernels.absolute()),
        "profiles": [{name: list(shapes) for name, shapes in profile.items()} for profile in job.profiles],
    }
    return json.dumps(fields).encode("ascii")


@contextmanager
def worker_environment(flavour: Flavour = "tensorrt_rtx") -> Iterator[dict[str, str]]:
    """Environment variables for the worker.

    On Linux the parser finds plugins only if ``libtensorrt_rtx.so`` can be loaded, and the wheel ships the library
    under its versioned name alone; a private folder with that one link is put on the loader's path, which is read when
    a process starts. Without the link, only graphs with plugins fail.
    """
    environment = dict(os.environ)
    root = str(Path(rtgen.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    if sys.platform != "linux" or flavour != "tensorrt_rtx":
        yield environment
        return
    with TemporaryDirectory(prefix="rtgen-", ignore_cleanup_errors=True) as folder:
        with suppress(OSError, ImportError, ValueError):
            spec = find_spec("tensorrt_rtx_libs")
            for library in Path(spec.origin).parent.glob("libtensorrt_rtx.so.*") if spec and spec.origin else ():
                (Path(folder) / "libtensorrt_rtx.so").symlink_to(library)
        paths = (folder, environment.get("LD_LIBRARY_PATH"))
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
        yield environment


@contextmanager
def _child(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that does not outlive the block."""
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


_END = object()


class _Build:
    """Follows one child from its job to its result."""

    def __init__(self, job: EngineJob, progress: Progress, stage: str, child: subprocess.Popen[bytes]) -> None:
        self._job, self._progress, self._stage, self._child = job, progress, stage, child
        self._fraction = 0.0
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._notable: deque[str] = deque(maxlen=_LOG_LINES)
        self._result: dict[str, Any] | None = None
        self._queue: SimpleQueue[Any] = SimpleQueue()

    def run(self, message: bytes, timeout: float | None) -> EngineResult:
        started = time.monotonic()
        threads = [Thread(target=self._pump_events, daemon=True), Thread(target=self._pump_prints, daemon=True)]
        for thread in threads:
            thread.start()
        with suppress(OSError):  # a child that died at once is reported below, with its reason
            assert self._child.stdin is not None
            self._child.stdin.write(message)
            self._child.stdin.close()
        deadline = None if timeout is None else started + timeout
        while (event := self._next(deadline)) is not _END:
            self._handle(event)
        threads[1].join(_GRACE_SECONDS)
        if self._result is None:
            raise self._died()
        return self._finished(time.monotonic() - started)

    def _pump_events(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as stream:
            for line in stream:
                self._queue.put(_event(line))
        self._queue.put(_END)

    def _pump_prints(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as stream:
            self._lines.extend(filter(None, map(_text, stream)))

    def _next(self, deadline: float | None) -> Any:
        while True:
            if deadline is not None and time.monotonic() > deadline:
                message = f"building {self._job.name} took longer than the time limit"
                raise self._error(message, hint="allow more time, or build a smaller frame size")
            with suppress(Empty):
                return self._queue.get(timeout=_POLL_SECONDS)

    def _handle(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "progress":
            self._fraction = max(self._fraction, min(float(event["fraction"]), 1.0))
            self._progress.update(self._stage, self._fraction, event["detail"])
        elif event["event"] == "log":
            self._lines.append(event["line"])
            if event["severity"] != "info":
                self._notable.append(event["line"])
        elif event["event"] == "result":
            self._result = dict(event)
        elif event["event"] == "error":
            hint = event["hint"] or "rtgen doctor checks the compiler; --gpu cpu builds the model for ONNX Runtime"
            raise self._error(event["message"], hint=hint)

    def _finished(self, seconds: float) -> EngineResult:
        result = self._result or {}
        if not self._job.output.is_file() or self._job.output.stat().st_size != result["size"]:
            raise self._error(f"the worker reported {self._job.name} as built, but its file is not whole", hint=None)
        self._progress.update(self._stage, 1.0)
        return EngineResult(
            path=self._job.output,
            size=result["size"],
            weights_bytes=result["weights_bytes"],
            activation_bytes=result["activation_bytes"],
            seconds=seconds,
            layers=result["layers"],
            plugins=result["plugins"],
            log=tuple(self._notable),
        )

    def _died(self) -> BuildError:
        # Standard output is at its end, so the process is gone or going.
        try:
            status = self._child.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return self._error(f"the process building {self._job.name} stopped reporting", hint="try again")
        reason, hint = describe_exit(status)
        return self._error(f"the process building {self._job.name} {reason}", hint=hint)

    def _error(self, message: str, *, hint: str | None) -> BuildError:
        return BuildError(message, hint=hint, log=tuple(self._lines)[-_SHOWN_LINES:])


def _event(line: bytes) -> dict[str, Any]:
    """An event of the worker; a line that is none becomes a log line."""
    with suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and "event" in event:
            return event
    return {"event": "log", "severity": "info", "line": _text(line)}


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip()
