"""The report as one HTML file: style, charts, clips and stills are all inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rtgen.fidelity.charts import Line, psnr_over_time
from rtgen.fidelity.overview import overview
from rtgen.fidelity.section import recipe_section
from rtgen.fidelity.text import plural, reached_text, reference_name, series

if TYPE_CHECKING:
    from rtgen.fidelity.findings import FidelityReport, Measured
    from rtgen.fidelity.pictures import Pictures

_STILL_SCRIPT: Final = """
if (matchMedia("(prefers-reduced-motion: reduce)").matches)
  for (const video of document.querySelectorAll("video")) { video.autoplay = false; video.pause(); }
"""


def page(report: FidelityReport, pictures: Mapping[str, Pictures]) -> str:
    """The page; ``pictures`` by recipe."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    title = f"{report.model}: how far quantization takes it from {reference_name(report)}"
    sections = [
        recipe_section(recipe, series(number), reference_name(report), pictures[recipe.name])
        for number, recipe in enumerate(report.recipes)
    ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>",
            _header(report, title),
            overview(report),
            _charts(report),
            *sections,
            _origins(report),
            f"</main>\n<script>{_STILL_SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


def _header(report: FidelityReport, title: str) -> str:
    verdicts = [verdict for recipe in report.recipes for verdict in recipe.verdicts]
    size = f"{report.size[0]}×{report.size[1]}"
    about = (
        f"{report.title}. Built for {report.gpu}, {size} at {report.frames_per_second} frames per second, "
        f"{_counts(report)}. {report.made[:10]}, {report.machine}."
    )
    return (
        f"<header><h1>{escape(title)}</h1>"
        f'<p class="soft">{escape(about)}</p><p class="lead">{escape(reached_text(verdicts))}</p></header>'
    )


def _counts(report: FidelityReport) -> str:
    lengths = report.recipes[0].measured if report.recipes else ()
    return " and ".join(f"{plural(measured.clips, 'clip')} of {measured.seconds:g} s" for measured in lengths)


def _charts(report: FidelityReport) -> str:
    figures = []
    for position, reference in enumerate(report.references):
        lines = [
            Line(recipe.name, series(number), recipe.measured[position].frame_psnr_db)
            for number, recipe in enumerate(report.recipes)
        ]
        chart = psnr_over_time(lines, reference.seconds)
        caption = (
            f"PSNR in dB, frame by frame, over {plural(_clips_at(report, position), 'clip')} of {reference.seconds:g} s"
        )
        figures.append(f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>")
    intro = (
        "Every chunk is made from the ones before it, so a difference that is there stays, and may grow into another "
        "course of the same scene: then PSNR falls although nothing looks wrong, which is why attributes and drift are "
        "measured besides."
    )
    return (
        f'<section class="card"><h2>Over time</h2><p class="soft" style="margin-top:6px">{escape(intro)}</p>'
        f'<div class="charts">{"".join(figures)}</div></section>'
    )


def _clips_at(report: FidelityReport, position: int) -> int:
    return report.recipes[0].measured[position].clips if report.recipes else 0


def _origins(report: FidelityReport) -> str:
    """What the figures rest on: everything that is the same for all recipes."""
    entries = [
        ("PSNR", "Of the mean squared error over all 8-bit values of all frames of all clips."),
        ("SSIM", "Wang et al., 2004: 11×11 Gaussian window of 1.5 pixels, mean of the three colours."),
        ("LPIPS", f"Not measured: {report.lpips_note}." if report.lpips_note else "AlexNet, every fourth frame."),
        (
            "attributes",
            f"Not measured: {report.attributes_note}." if report.attributes_note else
            "Read by the model’s classifier from the last frames of each clip, compared with what the prompt asks for. "
            "Points are those above FP16, with the 95 % interval of the mean over clips.",
        ),
        ("drift", "Mean colour in CIELAB and mean step between neighbours, over the last five seconds of all clips."),
        ("float32 for scale", _floor_text(report.floor, reference_name(report))),
        ("decoder", "Text encoder and decoder are the same for all: float32, by ONNX Runtime on the processor."),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("report made in", f"{report.seconds:.0f} s"),
    ]  # fmt: skip
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries if text)
    rows = "".join(
        f'<tr><td>{clip.seed}</td><td class="words">{escape(clip.prompt)}</td></tr>' for clip in report.clips
    )
    return (
        f'<section class="card"><h2>Where the numbers come from</h2><dl>{items}</dl>'
        '<details><summary>Prompts and seeds</summary><table><thead><tr><th scope="col">seed</th>'
        '<th scope="col" class="words">prompt</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></details></section>"
    )


def _floor_text(floor: Sequence[Measured], reference: str) -> str:
    if not floor or reference != "FP16":
        return ""
    value = "no difference" if floor[0].psnr_db is None else f"{floor[0].psnr_db:.1f} dB"
    return (
        f"The same clips without quantization, in float32 arithmetic in place of FP16’s: {value} over "
        f"{floor[0].seconds:g} s. No recipe can be expected to come nearer than that."
    )
