"""Versions of everything that can change what a stage contains, read without importing any of it."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rtgen
from rtgen.config.locate import bundled_directory, data_directory
from rtgen.errors import MissingDependencyError
from rtgen.store.keys import fields_digest

EXPORTER_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript")
MODELOPT = "nvidia-modelopt"
EXPORTER_SOURCES = (
    "export",
    "passes",
    "plugins",
    "config/kv_cache.py",
    "config/model.py",
    "data_types.py",
    "engine/manifest.py",
)
RECORDER_SOURCES = (
    "quantize/calibration_set.py",
    "quantize/contexts.py",
    "quantize/layered.py",
    "quantize/recorder.py",
    "runtime/adaptive.py",
    "runtime/denoise.py",
    "runtime/kv_cache.py",
    "runtime/noise.py",
    "runtime/prompt.py",
    "runtime/rope.py",
    "runtime/schedule.py",
)
BUILDER_SOURCES = ("build", "engine", "runtime/profiles.py", "runtime/schedule.py")
RING_SOURCES = ("plugins/quantized_kv_cache_attention.py", "plugins/quantized_kv_cache_attention_reference.py")
"""What the ring of codes computes."""
RECORD = "exporter.json"


def bundled_stages() -> Path:
    """Where a wheel carries finished stages of the bundled model, so that it can be built without torch."""
    return bundled_directory("stages")


def bundled_toolchain() -> dict[str, str] | None:
    """Versions of the packages that made the bundled stages; None where there are none."""
    record = bundled_stages() / RECORD
    if not record.is_file():
        return None
    found: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))
    return found


def installed_toolchain(*, with_modelopt: bool = False) -> dict[str, str]:
    """Versions of the installed packages that export, and calibrate. Raises MissingDependencyError if one is absent."""
    try:
        return {name: version(name) for name in (*EXPORTER_PACKAGES, *([MODELOPT] if with_modelopt else []))}
    except PackageNotFoundError as error:
        what = "calibrating for this recipe" if error.name == MODELOPT else "exporting a model"
        raise MissingDependencyError(
            f"{what} needs {error.name}, which is not installed", hint='pip install "rtgen[compile]"'
        ) from error


@cache
def exporter_sources() -> str:
    """Digest of rtgen's own code that shapes exported graphs, and of the plugin kernels."""
    return _sources(EXPORTER_SOURCES, *_modules("models"), data_directory("plugins"))


@cache
def recorder_sources() -> str:
    """Digest of rtgen's own code that makes and records calibration streams."""
    return _sources(RECORDER_SOURCES, *_modules("models"))


@cache
def quantizer_sources() -> str:
    """Digest of rtgen's own code that quantizes weights; its passes are among the exporter's sources."""
    return _sources(("plugins/w4a4_linear.py", *RING_SOURCES), *_modules("quantize"), *_modules("models"))


@cache
def torch_sources() -> str:
    """Digest of rtgen's own code that decides what a package of weights holds, and how it is computed."""
    return fields_digest({"exporter": exporter_sources(), "backend": _sources(("torch_backend",))})


@cache
def builder_sources() -> str:
    """Digest of rtgen's own code that makes packages out of graphs."""
    return _sources(BUILDER_SOURCES)


def _modules(room: str) -> list[Path]:
    """The files of a room but for those in folders: readers of checkpoints, and reports, change no stage."""
    return sorted((Path(rtgen.__file__).parent / room).glob("*.py"))


def _sources(names: tuple[str, ...], *more: Path) -> str:
    from rtgen.store.keys import tree_digest

    root = Path(rtgen.__file__).parent
    return tree_digest(*(root / name for name in names), *more)
