"""``rtgen quantize``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rtgen.cli.fidelity import check_report_options, report_options, report_result
from rtgen.cli.group import command
from rtgen.cli.options import build_options, resolve_gpu
from rtgen.cli.output import Output, Result
from rtgen.cli.table import columns
from rtgen.errors import UsageError

if TYPE_CHECKING:
    from rtgen.build.request import BuildRequest
    from rtgen.progress import Progress
    from rtgen.quantize.result import LayerResult, QuantizationResult


@command("quantize")
@build_options(recipes=True)
@report_options
def quantize(
    output: Output,
    gpu: str,
    model: str,
    recipes: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    decoder: str | None,
    calibration_prompts: Path | None,
    weights: Path | None,
    store: Path | None,
    report: Path | None,
    clips: int | None,
    lengths: Sequence[float],
    force: bool,
) -> Result:
    """Quantize a model, and show what was decided for each layer.

    This is a part of 'rtgen build', and what it makes is kept: a build with the same options takes it from the store.
    With --report the packages are built too, and clips of each recipe are compared with those of the unquantized model.

    \b
    rtgen quantize --recipe int4-awq
    rtgen quantize --recipe int8 --calib-prompts my-prompts.txt
    rtgen quantize --gpu rtx5090 --report report
    """
    from rtgen.build.request import BuildRequest

    check_report_options(report, clips, lengths, force=force)
    with output.progress() as progress:
        target = _target(gpu, recipes, progress, may_choose=report is not None)
        request = BuildRequest(target, model, None, tuple(sizes), weights, store, force, decoder, calibration_prompts)
        if report is not None:
            return report_result(request, recipes, report, clips, lengths, progress)
        results = _quantized(request, recipes or (None,), progress)
    data = [{"folder": str(folder), **result.model_dump(mode="json")} for folder, result in results]
    folders = [str(folder) for folder, _ in results]
    lines = [line for _, result in results for line in _table(result)]
    summary = [line for _, result in results for line in _summary(result)]
    return Result({**data[0], "recipes": data}, lines=lines, quiet=folders, summary=summary)


def _quantized(
    request: "BuildRequest", recipes: Sequence[str | None], progress: "Progress"
) -> "list[tuple[Path, QuantizationResult]]":
    """The folder of each recipe's stage, and what was decided."""
    from rtgen.build.walk import prepared
    from rtgen.quantize.result import read_result

    folders = [prepared(replace(request, recipe=recipe), progress)[1] for recipe in recipes]
    return [(folder, read_result(folder)) for folder in folders]


def _target(gpu: str, recipes: Sequence[str], progress: "Progress", *, may_choose: bool) -> str:
    """A GPU that the recipes are for: the named one, this machine's, or if that cannot run them the first that can.

    ``may_choose``: whether no recipe may mean all that quantize. Raises UsageError for a recipe that quantizes nothing.
    """
    from rtgen.config.load import can_run, list_gpus, load_gpu, load_recipe

    name = resolve_gpu(gpu, progress)
    names = recipes or (() if may_choose else (load_gpu(name).default_recipe,))
    chosen = [load_recipe(recipe) for recipe in names]
    for recipe in chosen:
        if recipe.quantization is None:
            raise UsageError(f"recipe '{recipe.name}' quantizes nothing", hint="rtgen recipe ls shows those that do")
    if gpu == "auto" and not all(can_run(load_gpu(name), recipe) for recipe in chosen):
        able = [found for found in map(load_gpu, list_gpus()) if all(can_run(found, recipe) for recipe in chosen)]
        # RTX targets are built anywhere, others on the GPU itself.
        name = next((found.name for found in able if found.compiler == "tensorrt_rtx"), name)
        progress.note(f"{' and '.join(names)} cannot run on this machine: quantizing for {name}")
    return name


def _table(result: "QuantizationResult") -> list[str]:
    rows = [
        [layer.name, _weights(layer), _activations(layer), _decibels(layer.snr_db), layer.reason]
        for layer in result.layers
    ]
    return columns(["layer", "weights", "activations", "SNR", "why kept"], rows)


def _weights(layer: "LayerResult") -> str:
    shared = f"/{layer.block}" if layer.block else ""
    return f"{layer.weights}{shared}" + (f" + rank {layer.rank}" if layer.rank else "")


def _activations(layer: "LayerResult") -> str:
    if layer.activations is None:
        return "smoothed" if layer.smoothed else "-"
    treated = [word for word, is_so in (("smoothed", layer.smoothed), ("rotated", layer.rotated)) if is_so]
    shared = f"/{layer.group}" if layer.group else ""
    return " ".join([f"{layer.activations}{shared}", *treated])


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} dB"


def _summary(result: "QuantizationResult") -> list[str]:
    quantized = [layer for layer in result.layers if layer.weights != "float"]
    total = sum(layer.elements for layer in result.layers)
    share = sum(layer.elements for layer in quantized) / total if total else 0.0
    line = f"{result.recipe}: {len(quantized)} of {len(result.layers)} matrices, {share:.1%} of their weights"
    measured = [layer.snr_db for layer in quantized if layer.snr_db is not None]
    extent = f"; layer outputs at {min(measured):.1f} to {max(measured):.1f} dB" if measured else ""
    return [line + extent]
