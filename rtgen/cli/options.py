"""Options that several commands share, their types and their completion."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rtgen.errors import SizeError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from rtgen.progress import Progress
    from rtgen.store.inventory import PackageInfo

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_SIZE = re.compile(r"(\d{1,5})[xX×](\d{1,5})", re.ASCII)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels from ``HxW``. Raises SizeError."""
    match = _SIZE.fullmatch(text.strip())
    size = (0, 0) if match is None else (int(match[1]), int(match[2]))
    if min(size) < 1:
        raise SizeError(f"'{text}' is not a size", hint="write height x width in pixels, such as --size 128x128")
    return size


def _to_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    return None if value is None else parse_size(value)


def _to_sizes(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(map(parse_size, value))


def _to_int(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else int(value)


def _complete_size(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    return _matching(lambda: _sizes(ctx.params.get("model") or DEFAULT_MODEL), incomplete)


def names(kind: str, *extra: str) -> Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]:
    """Completion of the names of a config kind: ``gpu``, ``model`` or ``recipe``."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        return _matching(lambda: [*extra, *_config_names(kind)], incomplete)

    return complete


def complete_package(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Completion of the keys of the packages in the store."""
    return _matching(lambda: [package.key for package in _packages(ctx.params.get("store"))], incomplete)


DEFAULT_MODEL = "postcard"
DECODERS = ("vae", "taehv")
"""Of model configs; which of them a model offers is the build's to check."""
BACKENDS = ("tensorrt_rtx", "tensorrt", "onnxruntime", "torch")
_path = click.Path(path_type=Path)

gpu_option = partial(
    click.option, "--gpu", metavar="NAME", shell_complete=names("gpu", "auto"),
    help="Target, or 'auto' for this machine's.",
)  # fmt: skip
model_option = partial(
    click.option, "--model", metavar="NAME", default=DEFAULT_MODEL, show_default=True, shell_complete=names("model"),
    help="Model to use.",
)  # fmt: skip
recipe_option = partial(
    click.option, "--recipe", metavar="NAME", shell_complete=names("recipe"),
    help="Numeric recipe; the GPU's own by default.",
)  # fmt: skip
_RECIPES_HELP = "Numeric recipe; repeatable. The GPU's own by default."
sizes_option = partial(
    click.option, "--size", "sizes", metavar="HxW", multiple=True, callback=_to_sizes, shell_complete=_complete_size,
    help="Frame size that the package must serve; several serve those between, too. The model's profiles by default.",
)  # fmt: skip
size_option = partial(
    click.option, "--size", metavar="HxW", callback=_to_size, shell_complete=_complete_size,
    help="Frame size; the model's own by default.",
)  # fmt: skip
weights_option = partial(
    click.option, "--weights", metavar="DIR", type=_path, help="Folder of the model's weights, if not bundled.",
)  # fmt: skip
decoder_option = partial(
    click.option, "--decoder", metavar="NAME", type=click.Choice(DECODERS),
    help="What turns latents into frames, of the decoders that the model offers: vae or taehv (tiny).",
)  # fmt: skip
kv_bits_option = partial(
    click.option, "--kv-bits", metavar="N", type=click.Choice(["16", "8", "4"]), callback=_to_int,
    help="Bits of a number in the K/V ring: 16 (the recipe's precision), 8 or 4; the recipe's own by default.",
)  # fmt: skip
backend_option = partial(
    click.option, "--backend", metavar="NAME", type=click.Choice(BACKENDS),
    help="What compiles and runs the package; the GPU's own by default. torch serves every target.",
)  # fmt: skip
calibration_option = partial(
    click.option, "--calib-prompts", "calibration_prompts", metavar="FILE", type=_path,
    help="Prompts to calibrate the recipe on, one a line; the model's own by default.",
)  # fmt: skip
store_option = partial(
    click.option, "--store", metavar="DIR", type=_path, help="Where engine packages are kept.",
)  # fmt: skip


def build_options(*, gpus: bool = False, sizes: bool = True, recipes: bool = False) -> Callable[[Decorated], Decorated]:
    """The options that make a BuildRequest, besides ``--force``: one or several of ``gpus``, ``sizes``, ``recipes``."""

    def wrap(callback: Decorated) -> Decorated:
        gpu = gpu_option(multiple=True) if gpus else gpu_option(default="auto", show_default=True)
        size = sizes_option() if sizes else size_option()
        recipe = recipe_option("recipes", multiple=True, help=_RECIPES_HELP) if recipes else recipe_option()
        where, what = (store_option(), weights_option()), (recipe, model_option(), gpu)
        # Several recipes are compared as they are.
        ring = () if recipes else (backend_option(), kv_bits_option())
        for option in (*where, calibration_option(), *ring, decoder_option(), size, *what):
            callback = option(callback)
        return callback

    return wrap


def resolve_gpu(name: str, progress: "Progress") -> str:
    """A GPU config's name; ``auto`` becomes this machine's, and says so."""
    if name != "auto":
        return name
    from rtgen.runtime.select import best_gpu_name

    best: str = best_gpu_name()
    progress.note(f"--gpu auto: {best}")
    return best


def _matching(values: Callable[[], Iterable[str]], incomplete: str) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    try:
        return [CompletionItem(value) for value in values() if value.startswith(incomplete)]
    except Exception:
        return []  # a broken config must not break the shell


def _config_names(kind: str) -> Iterable[str]:
    from rtgen.config.load import list_gpus, list_models, list_recipes

    return {"gpu": list_gpus, "model": list_models, "recipe": list_recipes}[kind]()


def _packages(store: Path | None) -> "Iterable[PackageInfo]":
    from rtgen.store.store import Store

    return Store(store).packages()


def _sizes(model: str) -> Iterable[str]:
    from rtgen.cli.table import size_text
    from rtgen.config.load import load_model

    resolution = load_model(model).resolution
    sizes = [resolution.default, *(size for p in resolution.profiles for size in (p.min, p.opt, p.max))]
    return dict.fromkeys(map(size_text, sizes))
