"""The process in which TensorRT builds one engine: a job on standard input, JSON lines of events on standard output.

A separate process because native code can abort or crash, and because it can be stopped at any moment. Started by
:mod:`rtgen.engine.builder` as ``python -m rtgen.engine.worker``. Events are objects with a key ``event``:

``progress``  ``fraction`` in 0..1, ``detail``
``log``       ``severity`` (``info``, ``warning``, ``error``), ``line``
``result``    ``size``, ``weights_bytes``, ``activation_bytes``, ``layers``, ``plugins``
``error``     ``message``, ``hint`` (or null)
"""

import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from rtgen.engine import trt
from rtgen.engine.phases import PhaseProgress
from rtgen.errors import BuildError, RtgenError
from rtgen.plugins.cubins import read_cubins
from rtgen.plugins.registry import PLUGINS
from rtgen.plugins.tensorrt_plugin import PackageKernels, register

_READING, _BUILDING, _WRITING = 0.0, 0.02, 0.85
"""Where on the way from 0 to 1 each part begins. Reading and writing report no steps of their own."""
_NO_GPU = re.compile(r"cudaError (35|100)\b")
"""Follows any error on a machine without a GPU, where building is meant to work, and explains nothing."""
_MEMORY = re.compile(r"Total (Weights|Activation) Memory: (\d+) bytes")


class Events:
    """The line to the parent, which native prints cannot reach."""

    def __init__(self) -> None:
        # Native code prints to file descriptor 1. Keep that pipe for events and let prints go to standard error.
        self._stream = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._lock = Lock()
        self.connected = True

    def send(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, **fields}).encode("ascii") + b"\n"
        with self._lock:
            try:
                self._stream.write(line)
                self._stream.flush()
            except OSError:
                self.connected = False


def progress_monitor(module: trt.Module, events: Events) -> Any:
    """An ``IProgressMonitor`` that reports to the parent and stops the build when the parent is gone."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._phases, self._lock, self._sent = PhaseProgress(), Lock(), (-1.0, "")

        def _report(self, fraction: float) -> None:
            # A build makes many thousand steps; a bar has some hundred positions.
            detail = self._phases.detail or "Serializing the engine"
            if fraction - self._sent[0] >= 0.002 or detail != self._sent[1]:
                self._sent = (fraction, detail)
                events.send("progress", fraction=_BUILDING + (_WRITING - _BUILDING) * fraction, detail=detail)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._report(self._phases.start(phase_name, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                self._report(self._phases.step(phase_name))
            return events.connected

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._report(self._phases.finish(phase_name))

    return Monitor()


class _Log:
    """Forwards log lines and picks out the two terms of the memory plan."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.memory: dict[str, int] = {}
        self.last_error: str | None = None

    def __call__(self, severity: str, line: str) -> None:
        for term, count in _MEMORY.findall(line):
            self.memory[term] = max(self.memory.get(term, 0), int(count))
        if severity == "error" and not _NO_GPU.search(line):
            self.last_error = line
        self._events.send("log", severity=severity, line=line)


def register_plugins(module: trt.Module, job: Mapping[str, Any]) -> None:
    """Make TensorRT know rtgen's plugins. Their kernels are read only where it times them, on a GPU."""
    folder = job["kernels"]
    kernels = PackageKernels(job["compute_capability"], lambda: read_cubins(Path(folder).iterdir()) if folder else {})
    register(module, PLUGINS.values(), kernels)


def parse_network(module: trt.Module, network: Any, logger: Any, job: Mapping[str, Any]) -> Any:
    """Read the ONNX file into ``network`` and return the parser, which must live as long as the network.

    Raises BuildError that names every node that TensorRT refuses.
    """
    parser = module.OnnxParser(network, logger)
    # External weights are looked up in the folder of this path, which need not hold the graph itself. The parser
    # refuses locations that lead out of it.
    anchor = Path(job["weights"]) / "network.onnx"
    if not parser.parse(Path(job["onnx"]).read_bytes(), str(anchor)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join(map(_describe, errors)) or "no reason given"
        raise BuildError(f"TensorRT cannot read {Path(job['onnx']).name}: {reasons}")
    return parser


def _describe(error: Any) -> str:
    """One line: the node and what is wrong with it."""
    where = f"{error.node_operator()} '{error.node_name()}'" if error.node_operator() else "graph"
    return f"{where}: " + " ".join(line for line in error.desc().splitlines() if not _NO_GPU.search(line))


def configure(module: trt.Module, builder: Any, network: Any, job: Mapping[str, Any]) -> Any:
    """A builder config with the job's target and optimization profiles. Raises BuildError for a bad profile."""
    config = builder.create_builder_config()
    config.set_preview_feature(module.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)  # plugins that update in place
    trt.set_target(module, config, job["compute_capability"])
    names = {network.get_input(index).name for index in range(network.num_inputs)}
    for number, ranges in enumerate(job["profiles"]):
        if unknown := sorted(set(ranges) - names):
            raise BuildError(f"profile {number} names inputs that {job['name']} lacks: {', '.join(unknown)}")
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in ranges.items():
            profile.set_shape(name, tuple(least), tuple(best), tuple(most))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"TensorRT refuses optimization profile {number} of {job['name']}")
    return config


def build(job: Mapping[str, Any], events: Events) -> None:
    """Build the engine of ``job`` (see ``builder.job_message``), write it and report the result."""
    events.send("progress", fraction=_READING, detail="Reading the network")
    module = trt.load(job["flavour"])
    log = _Log(events)
    logger = trt.logger(module, log)
    register_plugins(module, job)
    builder = module.Builder(logger)
    network = trt.create_network(module, builder)
    parser = parse_network(module, network, logger, job)
    config = configure(module, builder, network, job)
    config.progress_monitor = monitor = progress_monitor(module, events)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError(f"TensorRT cannot build {job['name']}: {log.last_error or 'no reason given'}")
    events.send("progress", fraction=_WRITING, detail="Writing the engine")
    data = memoryview(engine)
    write_whole(Path(job["partial"]), Path(job["output"]), data)
    events.send(
        "result",
        size=data.nbytes,
        weights_bytes=log.memory.get("Weights", data.nbytes),
        activation_bytes=log.memory.get("Activation", 0),
        layers=network.num_layers,
        plugins=plugin_layers(module, network),
    )
    del parser, monitor  # both had to outlive the build


def plugin_layers(module: trt.Module, network: Any) -> dict[str, int]:
    """How many layers of a network are plugins, by the plugin's name."""
    names: Counter[str] = Counter()
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == module.LayerType.PLUGIN_V3:
            layer.__class__ = module.IPluginV3Layer  # what TensorRT's bindings ask for instead of a cast
            names[layer.plugin.plugin_name] += 1
    return dict(names)


def write_whole(partial: Path, output: Path, data: memoryview) -> None:
    """Write under a temporary name first: ``output`` is either absent, old or complete."""
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(output)


def run(source: BinaryIO) -> int:
    """Read a job, build it, and return the exit status."""
    # Ctrl-C reaches every process of the terminal. The parent decides, and stops this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = Events()
    try:
        build(json.load(source), events)
    except RtgenError as error:
        events.send("error", message=error.message, hint=error.hint)
        return 1
    except Exception as error:
        events.send("error", message=f"{type(error).__name__}: {error}", hint=None)
        return 1
    return 0


if __name__ == "__main__":
    # Everything is written by now, and TensorRT's objects have crashed when torn down in the wrong order.
    os._exit(run(sys.stdin.buffer))
