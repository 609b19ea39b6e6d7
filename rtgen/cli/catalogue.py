"""``ls`` and ``show`` of the config kinds, from one table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from rtgen.cli.group import Group, command
from rtgen.cli.options import names
from rtgen.cli.output import Output, Result
from rtgen.cli.table import columns, settings, size_text


@dataclass(frozen=True)
class Kind:
    """One kind of config: how it is found, and the columns of ``ls``."""

    list: Callable[[], Sequence[str]]
    load: Callable[[str], Any]
    columns: Mapping[str, Callable[[Any], str]]


def _loader(function: str) -> Callable[..., Any]:
    def call(*arguments: str) -> Any:
        from rtgen.config import load

        return getattr(load, function)(*arguments)

    return call


def _format(recipe: Any, section: str) -> str:
    """The number format of a recipe's weights or activations, such as ``int4/64``."""
    quantization = getattr(recipe.quantization, section, None)
    if quantization is None:
        return str(recipe.precision)
    shared = quantization.block if section == "weights" else quantization.group
    return f"{quantization.format}/{shared}" if shared else str(quantization.format)


KINDS: Mapping[str, Kind] = {
    "gpu": Kind(
        _loader("list_gpus"),
        _loader("load_gpu"),
        {
            "title": lambda gpu: gpu.title,
            "cc": lambda gpu: gpu.compute_capability or "-",
            "memory": lambda gpu: f"{gpu.vram_gib:g} GiB",
            "compiler": lambda gpu: gpu.compiler,
            "recipe": lambda gpu: gpu.default_recipe,
        },
    ),
    "model": Kind(
        _loader("list_models"),
        _loader("load_model"),
        {
            "title": lambda model: model.title,
            "size": lambda model: size_text(model.resolution.default),
            "fps": lambda model: str(model.frames_per_second),
            "weights": lambda model: model.weights.directory or "see model show",
        },
    ),
    "recipe": Kind(
        _loader("list_recipes"),
        _loader("load_recipe"),
        {
            "title": lambda recipe: recipe.title,
            "compilers": lambda recipe: ", ".join(recipe.compilers),
            "weights": lambda recipe: _format(recipe, "weights"),
            "activations": lambda recipe: _format(recipe, "activations"),
            "algorithm": lambda recipe: recipe.quantization.algorithm if recipe.quantization else "-",
            "cc": lambda recipe: ", ".join(recipe.compute_capabilities) or "-",
        },
    ),
}


def catalogue(name: str, help: str) -> Group:
    """The group ``rtgen <name>`` with its two commands."""
    kind = KINDS[name]

    def ls(output: Output) -> Result:
        items = [kind.load(item) for item in kind.list()]
        rows = [[item.name, *(cell(item) for cell in kind.columns.values())] for item in items]
        return Result(
            data={f"{name}s": [item.model_dump(mode="json") for item in items]},
            lines=columns(["name", *kind.columns], rows),
            quiet=[item.name for item in items],
        )

    def show(output: Output, name: str) -> Result:
        data = kind.load(name).model_dump(mode="json")
        lines = settings(data)
        return Result(data=data, lines=lines, quiet=lines)

    ls.__doc__ = f"List the {name}s." if name != "gpu" else "List the GPUs."
    show.__doc__ = f"Show all settings of a {name if name != 'gpu' else 'GPU'}."
    group = Group(name, help=help)
    group.add_command(command("ls")(ls))
    group.add_command(command("show")(click.argument("name", shell_complete=names(name))(show)))
    return group
