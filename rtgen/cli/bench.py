"""``rtgen bench``, and its ``kernels``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rtgen.cli.group import Group, Lazy, command
from rtgen.cli.measurements import measurements_table
from rtgen.cli.options import gpu_option
from rtgen.cli.output import Output, Result
from rtgen.cli.table import columns
from rtgen.errors import UsageError

if TYPE_CHECKING:
    from rtgen.bench.computed import ComputedLaunch
    from rtgen.bench.result import Measurement
    from rtgen.plugins.base import Plugin

GPU = "rtx4080-laptop"
"""What is reckoned for when nothing is said: it cannot be measured in a rack."""


@click.command(
    "bench",
    cls=Group,
    lazy={"pipeline": Lazy("rtgen.cli.bench_pipeline", "pipeline", "Time whole pipelines beside plain eager torch.")},
)
def bench() -> None:
    """Time kernels and pipelines beside what people use today."""


@command("kernels")
@click.option("--only", metavar="NAME", multiple=True, help="Plugin to measure; repeatable. All by default.")
@click.option(
    "--repeats", metavar="N", type=click.IntRange(1, 10_000), default=50, show_default=True,
    help="Runs that a median is taken of.",
)  # fmt: skip
@click.option(
    "--computed", is_flag=True, help="Measure nothing: figures that follow from the compiled kernels. Needs no GPU."
)
@gpu_option("gpus", multiple=True, help=f"Target to add computed figures for; repeatable. With --computed {GPU}.")
@click.option("--report", metavar="FILE", type=click.Path(path_type=Path), help="JSON to write, and an SVG beside it.")
def kernels(
    output: Output, only: tuple[str, ...], repeats: int, computed: bool, gpus: tuple[str, ...], report: Path | None
) -> Result:
    """Time rtgen's kernels, each beside its baseline in the same run.

    Measuring needs torch and a CUDA GPU. For other GPUs (--gpu) the table has rooflines, and what each kernel takes of
    a multiprocessor: registers, shared memory, occupancy, and its instructions by kind.

    \b
    rtgen bench kernels --report kernels.json
    rtgen bench kernels --computed --gpu rtx4080-laptop --only w4a4_linear
    """
    from rtgen.bench.kernels import chosen_names, measure, plugins
    from rtgen.bench.provenance import machine
    from rtgen.bench.report import launch_fields, write_report

    if report is not None and report.suffix != ".json":
        raise UsageError(f"'{report}' is not the name of a report", hint="--report kernels.json")
    names = chosen_names(only)
    with output.progress() as progress:
        results = [] if computed else measure(names, repeats, progress)
        launches: list[ComputedLaunch] = []
        for name in gpus or ((GPU,) if computed else ()):
            progress.update("compute", None, name)
            figures = _computed(name, plugins(names))
            results += figures[0]
            launches += figures[1]
        progress.update("compute", 1.0)
    command_line = " ".join(["rtgen bench kernels", *(f"--only {name}" for name in only)])
    files = write_report(report, command_line, results, launches) if report else []
    data = {
        "results": [asdict(result) for result in results],
        "machine": machine(),
        "launches": [launch_fields(launch) for launch in launches],
        "files": [str(file) for file in files],
    }
    return Result(
        data,
        lines=[*measurements_table(results), *(["", *_launches_table(launches)] if launches else [])],
        quiet=[f"{result.value:.6g} {result.unit} {result.name}" for result in results],
        summary=[*_hints(launches), *(f"wrote {file}" for file in files)],
    )


bench.add_command(kernels)


def _computed(gpu: str, plugins: list["Plugin"]) -> tuple[Sequence["Measurement"], Sequence["ComputedLaunch"]]:
    from rtgen.bench.computed import compute
    from rtgen.config.load import load_gpu

    found = compute(plugins, load_gpu(gpu))
    return found.rooflines, found.launches


def _launches_table(launches: Sequence["ComputedLaunch"]) -> list[str]:
    """A kernel of several cases is shown once where its figures are the same."""
    headers = [
        "gpu",
        "kernel",
        "of",
        "threads",
        "registers",
        "shared",
        "blocks/sm",
        "occupancy",
        "limit",
        "instructions",
    ]
    return columns(headers, list(map(list, dict.fromkeys(map(_launch_row, launches)))))


def _launch_row(computed: "ComputedLaunch") -> tuple[str, ...]:
    mix = computed.mix or {}
    spilled = computed.resources.spill_stores + computed.resources.spill_loads
    return (
        computed.gpu,
        computed.launch.entry,
        computed.launch.source.name,
        str(computed.launch.threads),
        f"{computed.resources.registers}" + (f" ({spilled} B spilled)" if spilled else ""),
        f"{computed.shared / 1024:.1f} KiB",
        str(computed.occupancy.blocks),
        f"{computed.occupancy.share:.0%}",
        computed.occupancy.limit,
        ", ".join(f"{kind} {number}" for kind, number in mix.items() if number) or "-",
    )


def _hints(launches: Sequence["ComputedLaunch"]) -> list[str]:
    from rtgen.bench.instructions import INSTALL

    return [f"for the instructions of each kernel: {INSTALL}"] if any(item.mix is None for item in launches) else []
