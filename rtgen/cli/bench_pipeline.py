"""``rtgen bench pipeline``."""

from dataclasses import asdict
from pathlib import Path

import click

from rtgen.cli.group import command
from rtgen.cli.measurements import measurements_table
from rtgen.cli.opening import chosen_size
from rtgen.cli.options import (
    decoder_option,
    gpu_option,
    kv_bits_option,
    model_option,
    recipe_option,
    resolve_gpu,
    size_option,
    store_option,
    weights_option,
)
from rtgen.cli.output import Output, Result
from rtgen.cli.table import size_text
from rtgen.errors import UsageError

SECONDS = 5.0
REPEATS = 3


@command("pipeline")
@gpu_option(default="auto", show_default=True)
@model_option()
@recipe_option("recipes", multiple=True, help="Numeric recipe; repeatable. The GPU's own by default.")
@size_option()
@decoder_option()
@kv_bits_option()
@weights_option()
@store_option()
@click.option("--only", metavar="NAME", multiple=True, help="Configuration to measure; repeatable. All by default.")
@click.option(
    "--seconds", metavar="S", type=click.FloatRange(0, 600, min_open=True), default=SECONDS, show_default=True,
    help="Length of the videos.",
)  # fmt: skip
@click.option(
    "--repeats", metavar="N", type=click.IntRange(1, 100), default=REPEATS, show_default=True,
    help="Turns that medians are taken of.",
)  # fmt: skip
@click.option("--report", metavar="FILE", type=click.Path(path_type=Path), help="JSON to write, and an SVG beside it.")
def pipeline(
    output: Output,
    gpu: str,
    model: str,
    recipes: tuple[str, ...],
    size: tuple[int, int] | None,
    decoder: str | None,
    kv_bits: int | None,
    weights: Path | None,
    store: Path | None,
    only: tuple[str, ...],
    seconds: float,
    repeats: int,
    report: Path | None,
) -> Result:
    """Time whole pipelines beside plain eager torch.

    Eager torch runs the same weights, prompt, seed and passes, in BF16 on a GPU and in FP32 on a processor. Each
    configuration has a process of its own; packages that are missing are built first. It needs rtgen[compile].

    \b
    rtgen bench pipeline --gpu cpu --report pipeline.json
    rtgen bench pipeline --gpu cpu --recipe fp32 --recipe int8-cpu --seconds 10 --repeats 5
    """
    if report is not None and report.suffix != ".json":
        raise UsageError(f"'{report}' is not the name of a report", hint="--report pipeline.json")
    shape = chosen_size(size, model)
    from rtgen.bench.pipeline import chosen_names, measure
    from rtgen.bench.provenance import machine
    from rtgen.bench.report import write_report
    from rtgen.build.request import BuildRequest

    chosen_names(only)
    with output.progress() as progress:
        name = resolve_gpu(gpu, progress)
        request = BuildRequest(name, model, None, (), weights, store, decoder=decoder, kv_bits=kv_bits)
        figures = measure(request, recipes, only, shape, seconds, repeats, progress)
    setting = {"model": model, "gpu": name, "size": list(shape), "seconds": seconds, "repeats": repeats}
    setting |= {"random_weights": figures.random_weights}
    options = [f"--gpu {name}", f"--model {model}", *(f"--recipe {recipe}" for recipe in recipes)]
    options += [f"--size {size_text(shape)}", f"--seconds {seconds:g}", f"--repeats {repeats}"]
    line = " ".join(["rtgen bench pipeline", *options])
    details = {"setting": setting, "cases": figures.cases, "skipped": figures.skipped}
    files = write_report(report, line, figures.results, details=details) if report else []
    data = {
        "results": [asdict(result) for result in figures.results],
        "machine": machine(),
        **details,
        "files": [str(file) for file in files],
    }
    left_out = [f"left out: {title}: {reason}" for title, reason in figures.skipped.items()]
    return Result(
        data,
        lines=measurements_table(figures.results),
        quiet=[f"{result.value:.6g} {result.unit} {result.name}" for result in figures.results],
        summary=[*left_out, *(f"wrote {file}" for file in files)],
    )
