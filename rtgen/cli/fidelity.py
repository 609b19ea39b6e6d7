"""``rtgen quantize --report``: its options, and the report for the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rtgen.cli.options import Decorated
from rtgen.cli.output import Result
from rtgen.cli.table import columns
from rtgen.errors import UsageError

if TYPE_CHECKING:
    from rtgen.build.request import BuildRequest
    from rtgen.fidelity.findings import FidelityReport, Measured, Recipe
    from rtgen.progress import Progress

_SIGNS = {True: "", False: " (not reached)", None: ""}


def report_options(callback: Decorated) -> Decorated:
    """The options of the report, beside those of the build."""
    for option in (
        click.option("--force", is_flag=True, help="With --report: build again even if the store has the packages."),
        click.option(
            "--seconds", "lengths", metavar="S", multiple=True, type=click.FloatRange(0, 600, min_open=True),
            help="With --report: length of clips; repeatable, 5 and 30 by default.",
        ),
        click.option(
            "--clips", metavar="N", type=click.IntRange(1, 1000),
            help="With --report: clips of the shortest length, 8 by default; longer ones are fewer.",
        ),
        click.option(
            "--report", metavar="DIR", type=click.Path(path_type=Path),
            help="Build the packages, make clips and write how far they lie from the unquantized model's.",
        ),
    ):  # fmt: skip
        callback = option(callback)
    return callback


def check_report_options(report: Path | None, clips: int | None, lengths: Sequence[float], *, force: bool) -> None:
    """Raise UsageError for an option that would change nothing."""
    given = {"--clips": clips is not None, "--seconds": bool(lengths), "--force": force}
    idle = [name for name, is_given in given.items() if is_given]
    if report is None and idle:
        raise UsageError(f"{' and '.join(idle)} would change nothing", hint="--report DIR writes a report")


def report_result(
    build: "BuildRequest",
    recipes: Sequence[str],
    folder: Path,
    clips: int | None,
    lengths: Sequence[float],
    progress: "Progress",
) -> Result:
    """Make the report and say where it is."""
    from rtgen.fidelity.report import CLIPS, LENGTHS, ReportRequest, make_report
    from rtgen.fidelity.saved import prepare_folder, save_report

    prepare_folder(folder)
    request = ReportRequest(build, tuple(recipes), clips or CLIPS, tuple(lengths) or LENGTHS)
    finished = make_report(request, progress)
    saved = save_report(finished, folder)
    report = finished.report
    return Result(
        {"report": str(saved.data), "page": str(saved.page), **_data(report)},
        lines=[*_table(report), str(saved.page)],
        quiet=[str(saved.page)],
        summary=_missed(report),
    )


def _data(report: "FidelityReport") -> dict[str, Any]:
    """What the JSON object has besides paths; the whole is in the file."""
    recipes = [
        {
            "name": recipe.name,
            "weight_bits": recipe.weight_bits,
            "package_bytes": None if recipe.build is None else recipe.build.package_bytes,
            "measured": [_measured(measured) for measured in recipe.measured],
            "verdicts": [verdict.model_dump(mode="json") for verdict in recipe.verdicts],
        }
        for recipe in report.recipes
    ]
    return {"model": report.model, "gpu": report.gpu, "seconds": report.seconds, "recipes": recipes}


def _measured(measured: "Measured") -> dict[str, Any]:
    names = ("seconds", "clips", "psnr_db", "ssim", "lpips", "attribute_accuracy", "attribute_points")
    return {name: getattr(measured, name) for name in names}


def _table(report: "FidelityReport") -> list[str]:
    lengths = [f"{reference.seconds:g} s" for reference in report.references]
    head = ["recipe", "bits", *(f"{name} {length}" for length in lengths for name in ("PSNR", "SSIM", "attributes"))]
    return columns(head, [_row(recipe) for recipe in report.recipes])


def _row(recipe: "Recipe") -> list[str]:
    cells = [recipe.name, "-" if recipe.weight_bits is None else f"{recipe.weight_bits:.2f}"]
    for measured in recipe.measured:
        reached = {verdict.kind: verdict.reached for verdict in recipe.verdicts if verdict.seconds == measured.seconds}
        psnr = "equal" if measured.psnr_db is None else f"{measured.psnr_db:.1f} dB"
        accuracy = "-" if measured.attribute_accuracy is None else f"{measured.attribute_accuracy:.1%}"
        cells += [
            psnr + _SIGNS[reached.get("psnr")],
            f"{measured.ssim:.3f}",
            accuracy + _SIGNS[reached.get("attributes")],
        ]
    return cells


def _missed(report: "FidelityReport") -> list[str]:
    """A line for each figure that is not reached."""
    return [
        f"{recipe.name}: {verdict.name}: {verdict.measured}, wanted {verdict.wanted}. {verdict.why}".rstrip()
        for recipe in report.recipes
        for verdict in recipe.verdicts
        if verdict.reached is False
    ]
