"""The table at the top of the page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from rtgen.fidelity.text import mark, megabytes, reference_name, series

if TYPE_CHECKING:
    from rtgen.fidelity.findings import Build, FidelityReport, Measured, Recipe

_COLUMNS: Final = 4
"""For each length."""


def overview(report: FidelityReport) -> str:
    """A row for each recipe, below one for what it is compared with."""
    lengths = [reference.seconds for reference in report.references]
    groups = "".join(
        f'<th class="span" colspan="{_COLUMNS}" scope="colgroup">{seconds:g} s</th>' for seconds in lengths
    )
    columns = "".join(
        f'<th scope="col">{name}</th>' for _ in lengths for name in ("PSNR", "SSIM", "LPIPS", "attributes")
    )
    drift = '<th scope="col" rowspan="2">drift</th>' if _has_drift(report) else ""
    head = (
        '<thead><tr><th scope="col" rowspan="2">recipe</th><th scope="col" rowspan="2">denoiser</th>'
        '<th scope="col" rowspan="2">bits a weight</th><th scope="col" rowspan="2">build</th>'
        f"{groups}{drift}</tr><tr>{columns}</tr></thead>"
    )
    rows = [_reference_row(report), *(_row(report, number) for number in range(len(report.recipes)))]
    note = (
        f"PSNR, SSIM and LPIPS: against {reference_name(report)}’s clips of the same prompts and seeds. Attributes: "
        "the share of what the prompts ask for that the clips show. ✓ reached, ✗ not reached, – not measured; other "
        "figures have no target."
    )
    return (
        f'<section class="card"><div class="wide"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'
        f'<p class="soft" style="margin:14px 0 0">{escape(note)}</p></section>'
    )


def _reference_row(report: FidelityReport) -> str:
    cells = [
        _build_cell(report.reference_build, None),
        "<td>16</td>" if reference_name(report) == "FP16" else "<td>32</td>",
    ]
    cells.append(_seconds_cell(report.reference_build))
    for reference in report.references:
        accuracy = reference.attribute_accuracy
        cells += ["<td></td>"] * 3 + [f"<td>{'' if accuracy is None else f'{accuracy:.1%}'}</td>"]
    cells += ["<td></td>"] if _has_drift(report) else []
    return f'<tr class="reference"><th scope="row">{reference_name(report)}</th>{"".join(cells)}</tr>'


def _row(report: FidelityReport, number: int) -> str:
    recipe = report.recipes[number]
    name = (
        f'<th scope="row"><span class="dot b{series(number)}"></span><a href="#{escape(recipe.name)}">'
        f"{escape(recipe.name)}</a></th>"
    )
    bits = "" if recipe.weight_bits is None else f"{recipe.weight_bits:.2f}"
    if recipe.kept_share:
        bits += f'<span class="under">{recipe.kept_share:.0%} in {reference_name(report)}</span>'
    cells = [_build_cell(recipe.build, report.reference_build), f"<td>{bits}</td>", _seconds_cell(recipe.build)]
    for measured in recipe.measured:
        cells += _measured_cells(recipe, measured)
    if _has_drift(report):
        drift = next((verdict for verdict in recipe.verdicts if verdict.kind == "drift"), None)
        cells.append(f"<td>{mark(drift)}</td>")
    return f"<tr>{name}{''.join(cells)}</tr>"


def _measured_cells(recipe: Recipe, measured: Measured) -> list[str]:
    verdicts = {verdict.kind: verdict for verdict in recipe.verdicts if verdict.seconds == measured.seconds}
    psnr = "∞" if measured.psnr_db is None else f"{measured.psnr_db:.1f} dB"
    lpips = "–" if measured.lpips is None else f"{measured.lpips:.3f}"
    accuracy = "" if measured.attribute_accuracy is None else f"{measured.attribute_accuracy:.1%}"
    if measured.attribute_points is not None:
        accuracy += f'<span class="under">{measured.attribute_points:+.1f} points</span>'
    return [
        f"<td>{psnr}{mark(verdicts.get('psnr'))}</td>",
        f"<td>{measured.ssim:.3f}</td>",
        f"<td>{lpips}</td>",
        f"<td>{mark(verdicts.get('attributes'))} {accuracy}</td>",
    ]


def _build_cell(build: Build | None, reference: Build | None) -> str:
    if build is None:
        return "<td>not built</td>"
    share = (
        "" if reference is None else f'<span class="under">{build.denoiser_bytes / reference.denoiser_bytes:.0%}</span>'
    )
    return f"<td>{megabytes(build.denoiser_bytes)}{share}</td>"


def _seconds_cell(build: Build | None) -> str:
    if build is None:
        return "<td>–</td>"
    made = [stage for stage in build.stages if not stage.cached]
    if not made:
        return '<td>stored<span class="under">built before</span></td>'
    return f"<td>{sum(stage.seconds for stage in made):.0f} s</td>"


def _has_drift(report: FidelityReport) -> bool:
    return any(verdict.kind == "drift" for recipe in report.recipes for verdict in recipe.verdicts)
