"""``rtgen export``."""

from collections.abc import Sequence
from pathlib import Path

from rtgen.cli.group import command
from rtgen.cli.options import build_options, resolve_gpu
from rtgen.cli.output import Output, Result


@command("export")
@build_options()
def export(
    output: Output,
    gpu: str,
    model: str,
    recipe: str | None,
    sizes: Sequence[tuple[int, int]],
    decoder: str | None,
    kv_bits: int | None,
    backend: str | None,
    calibration_prompts: Path | None,
    weights: Path | None,
    store: Path | None,
) -> Result:
    """Write the ONNX files of a model, before compilation.

    They are a stage of the store, of standard ONNX operators: look at them, or run them with ONNX Runtime, but do not
    edit them in place.
    """
    from rtgen.build.request import BuildRequest
    from rtgen.build.walk import export as export_stage

    with output.progress() as progress:
        name = resolve_gpu(gpu, progress)
        request = BuildRequest(
            name, model, recipe, tuple(sizes), weights, store, False, decoder, calibration_prompts, kv_bits, backend
        )
        folder = export_stage(request, progress)
    data = {"folder": str(folder), "files": sorted(path.name for path in folder.iterdir())}
    return Result(data, lines=[str(folder)], quiet=[str(folder)])
