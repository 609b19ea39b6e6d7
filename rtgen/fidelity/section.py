"""The part of the page about one recipe."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from rtgen.fidelity.charts import layer_bars
from rtgen.fidelity.text import mark, megabytes, plural
from rtgen.fidelity.verdicts import db

if TYPE_CHECKING:
    from rtgen.fidelity.findings import Build, Recipe, Verdict
    from rtgen.fidelity.pictures import Pictures, SideBySide, Strip


def recipe_section(recipe: Recipe, series: int, reference: str, pictures: Pictures) -> str:
    """Verdicts, clips, stills, layers and where its numbers come from; ``reference`` is what it is compared with."""
    beside = "".join(_beside(picture, recipe.name, reference) for picture in pictures.beside)
    return (
        f'<section class="card" id="{escape(recipe.name)}"><div class="head"><h2><span class="dot b{series}"></span>'
        f'{escape(recipe.name)}</h2><span class="soft">{escape(recipe.title)}</span></div>'
        f'<ul class="verdicts">{"".join(map(_verdict, recipe.verdicts))}</ul>'
        f'<h3>Side by side</h3><div class="clips">{beside}</div>'
        f"<h3>Over the longest clip</h3>{_strip(pictures.strip, recipe.name, reference)}"
        f"{_layers(recipe)}{_origin(recipe)}</section>"
    )


def _verdict(verdict: Verdict) -> str:
    why = f'<span class="why">{escape(verdict.why)}</span>' if verdict.why else ""
    name = verdict.name[0].upper() + verdict.name[1:]
    text = f"{name}: <b>{escape(verdict.measured)}</b> <span class='soft'>(wanted: {escape(verdict.wanted)})</span>"
    return f"<li>{mark(verdict)}<span>{text}{why}</span></li>"


def _beside(picture: SideBySide, name: str, reference: str) -> str:
    columns = "".join(f"<span>{escape(text)}</span>" for text in (reference, name, "difference ×4"))
    return (
        f'<figure><div class="columns" style="grid-template-columns:repeat(3,1fr)">{columns}</div>'
        f'<video src="{picture.video}" poster="{picture.still}" width="{picture.width}" height="{picture.height}" '
        f"autoplay loop muted playsinline controls></video><figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _strip(strip: Strip, name: str, reference: str) -> str:
    labels = "".join(f"<span>{escape(text)}</span>" for text in (reference, name, "×4"))
    times = "".join(f"<span>{time:g} s</span>" for time in strip.times)
    return (
        f'<figure class="strip"><div class="rows"><div class="labels">{labels}</div>'
        f'<img src="{strip.picture}" width="{strip.width}" height="{strip.height}" alt="Stills of {reference}, '
        f'{escape(name)} and their difference"><span></span>'
        f'<div class="columns" style="grid-template-columns:repeat({len(strip.times)},1fr)">{times}</div></div>'
        f"<figcaption>{escape(strip.caption)}</figcaption></figure>"
    )


def _layers(recipe: Recipe) -> str:
    chart = layer_bars(recipe.layers)
    if not chart:
        return ""
    kept = any(layer.weights == "float" and layer.snr_db is not None for layer in recipe.layers)
    legend = [("b1", "self-attention"), ("b4", "cross-attention"), ("b3", "feed-forward"), ("b8", "other")]
    items = "".join(f'<span><span class="dot {colour}"></span>{name}</span>' for colour, name in legend)
    items += (
        '<span><span class="dot hollow"></span>stays as it is, being among the most sensitive</span>' if kept else ""
    )
    return (
        "<h3>Signal-to-noise ratio of each layer’s output on the calibration streams, in dB, by block</h3>"
        f'<div class="legend">{items}</div><div class="wide">{chart}</div>'
    )


def _origin(recipe: Recipe) -> str:
    entries = [("way", recipe.way), ("single passes", _velocity(recipe)), ("graph", _graph(recipe))]
    entries.append(("package", _package(recipe.build) if recipe.build else f"Not built here: {recipe.build_note}."))
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries)
    return (
        f"<details><summary>How these numbers came about</summary><dl>{items}</dl></details>"
        f"<details><summary>{plural(len(recipe.layers), 'layer')}</summary>{_layer_table(recipe)}</details>"
    )


def _velocity(recipe: Recipe) -> str:
    above = db(recipe.velocity_snr_db)
    return f"On the unquantized model’s own inputs, predictions are {above} above their error (passes of two chunks)."


def _graph(recipe: Recipe) -> str:
    if recipe.graph_note:
        return f"ONNX Runtime does not execute the graph that the compiler is given: {recipe.graph_note}"
    above = db(recipe.graph_snr_db)
    return f"The same of the graph that the compiler is given, as ONNX Runtime executes it: {above}."


def _package(build: Build) -> str:
    stages = ", ".join(
        f"{stage.name} {'from the store' if stage.cached else f'{stage.seconds:.1f} s'}" for stage in build.stages
    )
    whole = "in the store already" if build.cached else stages
    return f"{megabytes(build.package_bytes)}, of which the denoiser {megabytes(build.denoiser_bytes)}; {whole}."


def _layer_table(recipe: Recipe) -> str:
    rows = []
    for layer in recipe.layers:
        weights = layer.weights + (f", blocks of {layer.block}" if layer.block else "")
        activations = (
            "–" if layer.activations is None else layer.activations + (f"/{layer.group}" if layer.group else "")
        )
        more = [f"rank {layer.rank}" if layer.rank else "", "smoothed" if layer.smoothed else ""]
        more += ["rotated" if layer.rotated else "", layer.reason]
        snr = "–" if layer.snr_db is None else f"{layer.snr_db:.1f} dB"
        cells = (layer.name, weights, activations, ", ".join(filter(None, more)), snr)
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("layer", "weights", "activations", "", "output SNR"))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
