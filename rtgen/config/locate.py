"""Where the data files that come with rtgen are: in a wheel, in a source tree, and in the user's own folders."""

import os
import re
from pathlib import Path
from typing import Final, Literal

from rtgen.errors import ConfigError, MissingDependencyError, UsageError

CONFIGS_VARIABLE: Final = "RTGEN_CONFIGS"
"""Environment variable that lists the user's config folders as PATH does; each looks like the shipped ``configs/``."""

NAME_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9.-]*", re.ASCII)
"""Names of GPUs, models and recipes. It leaves no way to write a path: no separator, no drive, no leading dot."""

_PACKAGE: Final = Path(__file__).resolve().parents[1]


def data_directory(name: Literal["configs", "plugins"]) -> Path:
    """The shipped folder of that name: ``rtgen/_data/<name>`` in a wheel, ``<repository>/<name>`` in a source tree.

    Raises MissingDependencyError when the installation lacks it.
    """
    for directory in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if directory.is_dir():
            return directory
    raise MissingDependencyError(
        f"this installation of rtgen lacks its '{name}' folder",
        hint="reinstall it: pip install --force-reinstall --no-deps rtgen",
    )


def bundled_directory(model: str) -> Path:
    """``rtgen/bundled/<model>``, where the weights of a bundled model are; it need not exist.

    Raises UsageError for a name that is not a plain one.
    """
    if not NAME_PATTERN.fullmatch(model):
        raise UsageError(f"'{model}' is not a model name", hint="rtgen model ls shows the names")
    return _PACKAGE / "bundled" / model


def config_directories() -> tuple[Path, ...]:
    """Folders that hold ``gpus/``, ``models/`` and ``recipes/``, first wins: those of $RTGEN_CONFIGS, then the shipped.

    Raises ConfigError for a listed folder that does not exist, since its settings would silently not apply.
    """
    listed = [Path(entry) for entry in os.environ.get(CONFIGS_VARIABLE, "").split(os.pathsep) if entry.strip()]
    for directory in listed:
        if not directory.is_dir():
            raise ConfigError(
                f"{CONFIGS_VARIABLE} names '{directory}', which is not a folder",
                hint=f"correct or unset {CONFIGS_VARIABLE}; it holds folders separated by '{os.pathsep}'",
            )
    return (*listed, data_directory("configs"))


def config_files(folder: Literal["gpus", "models", "recipes"]) -> dict[str, Path]:
    """The TOML files of one kind by name (file stem), sorted. Files whose stem cannot be a name are not listed."""
    found: dict[str, Path] = {}
    for directory in config_directories():
        for path in (directory / folder).glob("*.toml"):
            if NAME_PATTERN.fullmatch(path.stem):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def calibration_files() -> dict[str, Path]:
    """The files of calibration prompts by name (file stem), sorted."""
    found: dict[str, Path] = {}
    for directory in config_directories():
        for path in (directory / "calibration").glob("*.txt"):
            if NAME_PATTERN.fullmatch(path.stem):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))
