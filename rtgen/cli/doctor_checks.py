"""What ``rtgen doctor`` looks at: one small function a check, each returning rows and raising nothing.

Native libraries can end the process that loads them, so they are tried in a child (``rtgen.cli.doctor_probes``).
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import rtgen
from rtgen.cli.disk import existing_folder, free_space
from rtgen.cli.table import bytes_text

State = Literal["ok", "warn", "missing"]

PROBE_TIMEOUT_S = 90
COMPILE_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "nvidia-modelopt", "polygraphy")
REINSTALL = "pip install --upgrade --force-reinstall rtgen"


@dataclass(frozen=True)
class Row:
    """One line of the report: ``warn`` works partly, ``missing`` does not work here, which may be fine."""

    area: str
    state: State
    detail: str
    fix: str | None = None
    """A command or an address; None where there is nothing to fix."""


Check = Callable[[], list[Row]]


class ProbeError(Exception):
    """The child failed, with one line that says how."""


def probe(name: str) -> dict[str, Any]:
    """Run one function of ``rtgen.cli.doctor_probes`` in a child and return its JSON. Raises ProbeError."""
    command = [sys.executable, "-m", "rtgen.cli.doctor_probes", name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ProbeError(f"no answer in {PROBE_TIMEOUT_S} s") from error
    answer = done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(answer)
        return result
    last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    raise ProbeError(last if done.returncode == 1 and last else f"its process ended with code {done.returncode}")


def python() -> list[Row]:
    """Interpreter and rtgen itself."""
    found = ".".join(map(str, sys.version_info[:3]))
    bits = 64 if sys.maxsize > 2**32 else 32
    fix = None if bits == 64 else "install 64-bit Python: https://www.python.org/downloads"
    return [
        Row("Python", "ok" if bits == 64 else "missing", f"{found}, {bits}-bit, {sys.executable}", fix),
        Row("rtgen", "ok", f"{rtgen.__version__}, {Path(rtgen.__file__).parent}"),
    ]


def gpus() -> list[Row]:
    """Driver and GPUs as NVML sees them, and the config that ``--gpu auto`` takes for each."""
    from rtgen.config.load import match_gpu

    try:
        answer = probe("nvml")
    except ProbeError as error:
        fix = "install the driver from https://www.nvidia.com/drivers, if there is an NVIDIA GPU"
        return [Row("NVIDIA driver", "missing", f"{error}: rtgen uses the processor", fix)]
    rows = [Row("NVIDIA driver", "ok", answer["driver"])]
    for index, device in enumerate(answer["devices"]):
        name, capability, vram = device["name"], device["compute_capability"], device["vram_bytes"]
        config = match_gpu(name, capability, vram / 2**30)
        detail = f"{name}, {bytes_text(vram)}, compute capability {capability}"
        if config is None:
            fix = "rtgen gpu ls shows the known ones: name the nearest with --gpu"
            rows.append(Row(f"GPU {index}", "warn", f"{detail}: no config matches", fix))
        else:
            rows.append(Row(f"GPU {index}", "ok", f"{detail}: --gpu {config.name}"))
    return rows


def tensorrt() -> list[Row]:
    """TensorRT for RTX, the default, and TensorRT, the extra for data-centre GPUs."""
    from rtgen.engine.trt import TRAITS, installed_version

    rows = []
    for flavour, traits in TRAITS.items():
        found = installed_version(flavour)
        if found is None and flavour == "tensorrt":
            rows.append(Row(traits.title, "missing", f"only data-centre GPUs need it: {traits.install}"))
            continue
        if found is None:
            rows.append(Row(traits.title, "missing", "not installed", traits.install))
            continue
        try:
            rows.append(Row(traits.title, "ok", f"{found}, loads as {probe(flavour)['version']}"))
        except ProbeError as error:
            rows.append(Row(traits.title, "warn", f"{found}: {error}", f"{traits.install} --force-reinstall"))
    return rows


def kernel_compiler() -> list[Row]:
    """NVRTC: compiles one kernel for sm_89, which needs no GPU."""
    try:
        answer = probe("nvrtc")
    except ProbeError as error:
        return [Row("NVRTC", "missing", str(error), REINSTALL)]
    return [Row("NVRTC", "ok", f"{answer['version']}, compiles for {answer['architecture']}")]


def onnxruntime() -> list[Row]:
    """The runtime of ``--gpu cpu``: loads it."""
    try:
        answer = probe("onnxruntime")
    except ProbeError as error:
        return [Row("ONNX Runtime", "missing", str(error), REINSTALL)]
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in answer["providers"])
    return [Row("ONNX Runtime", "ok", f"{answer['version']} ({providers})")]


def video() -> list[Row]:
    """The encoders of each output format."""
    try:
        usable = probe("codecs")["usable"]
    except ProbeError as error:
        return [Row("Video", "missing", str(error), REINSTALL)]
    essential = [name for name, works in usable.items() if not works and name != "h264_nvenc"]
    detail = ", ".join(f"{name} {'yes' if works else 'no'}" for name, works in usable.items())
    return [Row("Video", "warn" if essential else "ok", detail, "pip install --upgrade av" if essential else None)]


def compile_extra() -> list[Row]:
    """The toolchain wing, which only ``build``, ``export`` and ``verify`` need."""
    found, missing = [], []
    for name in COMPILE_PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        detail = f"lacks {', '.join(missing)}; ready-made packages still run"
        return [Row("Compilation", "missing", detail, 'pip install "rtgen[compile]"')]
    return [Row("Compilation", "ok", ", ".join(found))]


def store(folder: Path | None) -> list[Row]:
    """Where packages go: whether it can be written, what it holds and what is free."""
    from rtgen.store.store import Store

    opened = Store(folder)
    existing = existing_folder(opened.root)
    space = f"{bytes_text(opened.size())} used, {bytes_text(free_space(opened.root))} free"
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        fix = "set RTGEN_STORE to a folder that you may write to"
        return [Row("Store", "warn", f"{opened.root}: cannot be written ({error.strerror}); {space}", fix)]
    return [Row("Store", "ok", f"{opened.root}: {space}")]


CHECKS: Sequence[Check] = (python, gpus, tensorrt, kernel_compiler, onnxruntime, video, compile_extra)


def run_checks(checks: Sequence[Check]) -> list[Row]:
    """All rows in order; the checks wait for their children side by side."""
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        return [row for rows in pool.map(_guarded, checks) for row in rows]


def _guarded(check: Check) -> list[Row]:
    try:
        return check()
    except Exception as error:  # a broken check is a finding, not a failure of the report
        name = getattr(check, "__name__", "check").replace("_", " ")
        return [Row(name, "warn", f"{type(error).__name__}: {error}")]


def can_run(rows: Sequence[Row]) -> bool:
    """Whether a video can be made here at all: on the processor, or on a GPU with TensorRT."""
    states = {row.area: row.state for row in rows}
    gpu = any(area.startswith("GPU ") and state == "ok" for area, state in states.items())
    accelerated = gpu and "ok" in (states.get("TensorRT for RTX"), states.get("TensorRT"))
    return states.get("Video") != "missing" and (states.get("ONNX Runtime") == "ok" or accelerated)
