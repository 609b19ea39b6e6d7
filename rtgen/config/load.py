"""Load and check the files under ``configs/``.

A name is looked up among the files that exist and never becomes part of a path. pydantic is imported on the first
load, so that the command line starts without it.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from rtgen.config.locate import config_files
from rtgen.errors import ConfigError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    from rtgen.config.gpu import GpuConfig
    from rtgen.config.model import ModelConfig
    from rtgen.config.recipe import RecipeConfig

    Config = TypeVar("Config", GpuConfig, ModelConfig, RecipeConfig)

Kind = Literal["gpu", "model", "recipe"]
Folder = Literal["gpus", "models", "recipes"]

_FOLDERS: Final[Mapping[Kind, Folder]] = {"gpu": "gpus", "model": "models", "recipe": "recipes"}
_MAXIMUM_BYTES: Final = 1 << 20
"""Far above any config; a larger file is a mistake and is not read."""


def list_gpus() -> tuple[str, ...]:
    """Names of the GPU configs, sorted."""
    return tuple(config_files("gpus"))


def list_models() -> tuple[str, ...]:
    """Names of the model configs, sorted."""
    return tuple(config_files("models"))


def list_recipes() -> tuple[str, ...]:
    """Names of the recipe configs, sorted."""
    return tuple(config_files("recipes"))


def load_gpu(name: str) -> "GpuConfig":
    """The GPU config of that name, with a default recipe that is known to run on it.

    Raises UnknownNameError when there is none, ConfigError when the file is not valid.
    """
    from rtgen.config.gpu import GpuConfig

    path = _find("gpu", name)
    gpu = _load("gpu", path, GpuConfig)
    if gpu.builds_engines and gpu.compute_capability is None:
        raise _invalid("gpu", path, f"compute_capability: compiler '{gpu.compiler}' needs one")
    if gpu.default_recipe not in list_recipes():
        raise _invalid("gpu", path, f"default_recipe: there is no recipe '{gpu.default_recipe}'")
    reason = _refusal(gpu, load_recipe(gpu.default_recipe))
    if reason is not None:
        raise _invalid("gpu", path, f"default_recipe: {reason}")
    return gpu


def load_model(name: str) -> "ModelConfig":
    """The model config of that name. Raises UnknownNameError or ConfigError."""
    from rtgen.config.model import ModelConfig

    return _load("model", _find("model", name), ModelConfig)


def load_recipe(name: str) -> "RecipeConfig":
    """The recipe of that name. Raises UnknownNameError or ConfigError."""
    from rtgen.config.recipe import RecipeConfig

    return _load("recipe", _find("recipe", name), RecipeConfig)


def recipe_for(gpu: "GpuConfig", recipe: "RecipeConfig") -> None:
    """Check that the recipe runs on the GPU. Raises UsageError that says why not, and names the recipes that do."""
    reason = _refusal(gpu, recipe)
    if reason is not None:
        working = [name for name in list_recipes() if _refusal(gpu, load_recipe(name)) is None]
        hint = f"use --recipe {' or '.join(working)}" if working else "rtgen recipe ls shows all"
        raise UsageError(reason, hint=hint)


def can_run(gpu: "GpuConfig", recipe: "RecipeConfig") -> bool:
    """Whether the recipe runs on the GPU."""
    return _refusal(gpu, recipe) is None


def match_gpu(device_name: str, compute_capability: str, vram_gib: float) -> "GpuConfig | None":
    """The config for a device, as the driver describes it (``--gpu auto``); None when no config has its capability.

    Engines and kernels depend on the compute capability only, so any config of the same capability makes packages that
    run on the device. Preferred are, in this order: configs with no more VRAM than the device (memory plans then hold),
    configs that list the device's name, the nearest VRAM. Raises ConfigError when a config is not valid.
    """
    candidates = [gpu for gpu in map(load_gpu, list_gpus()) if gpu.compute_capability == compute_capability]
    tolerance = 1.05  # drivers report a little less than the nominal size

    def rank(gpu: "GpuConfig") -> tuple[bool, bool, float]:
        too_large = gpu.vram_gib > vram_gib * tolerance
        return too_large, device_name not in gpu.device_names, abs(gpu.vram_gib - vram_gib)

    return min(candidates, key=rank, default=None)


def _refusal(gpu: "GpuConfig", recipe: "RecipeConfig") -> str | None:
    if gpu.compiler not in recipe.compilers:
        *others, last = recipe.compilers
        served = f"{', '.join(others)} and {last}" if others else last
        return f"recipe '{recipe.name}' is for {served}, but {gpu.name} uses {gpu.compiler}"
    capability = gpu.compute_capability
    if capability is not None and not recipe.compute_capabilities:
        return f"recipe '{recipe.name}' is for processors, and {gpu.name} is a GPU"
    if capability is not None and capability not in recipe.compute_capabilities:
        known = ", ".join(recipe.compute_capabilities)
        return f"recipe '{recipe.name}' runs on compute capability {known}, but {gpu.name} has {capability}"
    return None


def _find(kind: Kind, name: str) -> Path:
    files = config_files(_FOLDERS[kind])
    if name not in files:
        raise UnknownNameError(kind, name, files)
    return files[name]


def _load(kind: Kind, path: Path, schema: "type[Config]") -> "Config":
    from pydantic import ValidationError

    try:
        config = schema.model_validate(_read_toml(kind, path))
    except ValidationError as error:
        raise _invalid(kind, path, _first_problem(error, schema)) from None
    if config.name != path.stem:
        raise _invalid(kind, path, f"name: is '{config.name}', but the file is called '{path.stem}'")
    return config


def _read_toml(kind: Kind, path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAXIMUM_BYTES:
            raise _invalid(kind, path, "is larger than 1 MiB")
        # utf-8-sig: editors on Windows put a byte order mark first.
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise _invalid(kind, path, f"cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _invalid(kind, path, f"is not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise _invalid(kind, path, f"is not UTF-8 text (byte {error.start})") from error


def _invalid(kind: Kind, path: Path, problem: str) -> ConfigError:
    others = [name for name in config_files(_FOLDERS[kind]) if name != path.stem]
    hint = f"compare it with a valid one: rtgen {kind} show {others[0]}" if others else None
    return ConfigError(f"{path}: {problem}", hint=hint)


def _first_problem(error: "ValidationError", schema: "type[BaseModel]") -> str:
    """``key.path: what is wrong (and N more problems)`` of a pydantic ValidationError."""
    problems = error.errors(include_url=False, include_context=False)
    # A misspelt key is also a missing one; the misspelling is the more useful of the two.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    location = problems[0]["loc"]
    if problems[0]["type"] == "extra_forbidden":
        text = "unknown key" + _nearest_key(location, schema)
    elif problems[0]["type"] == "missing":
        text = "is missing"
    else:
        text = problems[0]["msg"].removeprefix("Value error, ").removeprefix("Input ")
    more = len(problems) - 1
    suffix = f" (and {more} more problem{'s' if more > 1 else ''})" if more else ""
    return f"{'.'.join(map(str, location)) or 'file'}: {text}{suffix}"


def _nearest_key(location: tuple[int | str, ...], schema: "type[BaseModel]") -> str:
    """``, did you mean 'x'?`` when the table at ``location[:-1]`` has a key like its last part."""
    from difflib import get_close_matches

    from pydantic import BaseModel

    table: Any = schema
    for key in location[:-1]:
        field = table.model_fields.get(key)
        table = None if field is None else field.annotation
        if not (isinstance(table, type) and issubclass(table, BaseModel)):
            return ""
    near = get_close_matches(str(location[-1]), list(table.model_fields), n=1)
    return f", did you mean '{near[0]}'?" if near else ""
