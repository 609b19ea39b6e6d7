"""Versions of everything that can change what a stage contains, read without importing any of it."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rtgen
from rtgen.config.locate import bundled_directory, data_directory
from rtgen.errors import MissingDependencyError

EXPORTER_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript")
EXPORTER_SOURCES = ("export", "passes", "plugins", "config/model.py", "engine/manifest.py")
QUANTIZER_SOURCES = ("quantize",)
BUILDER_SOURCES = ("build", "engine", "runtime/profiles.py", "runtime/schedule.py")
RECORD = "exporter.json"


def bundled_stages() -> Path:
    """Where a wheel carries finished stages of the bundled model, so that it can be built without torch."""
    return bundled_directory("stages")


def bundled_exporter() -> dict[str, str] | None:
    """Versions of the packages that exported the bundled stages; None where there are none."""
    record = bundled_stages() / RECORD
    if not record.is_file():
        return None
    found: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))
    return found


def installed_exporter() -> dict[str, str]:
    """Versions of the installed export packages. Raises MissingDependencyError if one is absent."""
    try:
        return {name: version(name) for name in EXPORTER_PACKAGES}
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            f"exporting a model needs {error.name}, which is not installed", hint='pip install "rtgen[compile]"'
        ) from error


@cache
def exporter_sources() -> str:
    """Digest of rtgen's own code that shapes exported graphs, and of the plugin kernels."""
    models = sorted((Path(rtgen.__file__).parent / "models").glob("*.py"))  # the readers of checkpoints shape none
    return _sources(EXPORTER_SOURCES, *models, data_directory("plugins"))


@cache
def quantizer_sources() -> str:
    """Digest of rtgen's own code that quantizes weights; its passes are among the exporter's sources."""
    return _sources(QUANTIZER_SOURCES)


@cache
def builder_sources() -> str:
    """Digest of rtgen's own code that makes packages out of graphs."""
    return _sources(BUILDER_SOURCES)


def _sources(names: tuple[str, ...], *more: Path) -> str:
    from rtgen.store.keys import tree_digest

    root = Path(rtgen.__file__).parent
    return tree_digest(*(root / name for name in names), *more)
