"""Charts of the report, as inline SVG. Colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rtgen.quantize.result import LayerResult

_WIDTH, _HEIGHT = 640, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 96, 14, 30
_POINTS: Final = 160
"""Of a line; longer ones are thinned."""
_LABEL_HEIGHT: Final = 14

_BAR, _GAP, _BLOCK_GAP = 9, 3, 14
_BARS_HEIGHT: Final = 128
_BARS_TOP, _BARS_BOTTOM, _BARS_LEFT = 12, 24, 34


@dataclass(frozen=True)
class Line:
    """A recipe over time: PSNR of evenly spaced frames in dB; None where frames are equal."""

    name: str
    series: int
    """Which colour, from 1."""
    values: tuple[float | None, ...]


def psnr_over_time(lines: Sequence[Line], seconds: float) -> str:
    """PSNR against FP16 over a clip, a line a recipe, named at its end."""
    finite = [value for line in lines for value in line.values if value is not None]
    if not finite:
        return ""
    low, high = 10 * math.floor(min(finite) / 10), 10 * math.ceil(max(finite) / 10 + 0.01)
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(share: float, value: float | None) -> tuple[float, float]:
        level = high if value is None else value
        return _LEFT + share * inner_width, _TOP + (high - level) / (high - low) * inner_height

    parts = [_open(_WIDTH, _HEIGHT, "chart", f"PSNR against FP16 over {seconds:g} seconds, in decibels")]
    for level in range(low, high + 1, 10):
        y = at(0, level)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + inner_width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{level}</text>')
    for second in _ticks(seconds):
        x = at(second / seconds, low)[0]
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{second:g} s</text>')
    ends = []
    for line in lines:
        values = _thinned(line.values)
        points = [at(position / max(1, len(values) - 1), value) for position, value in enumerate(values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line s{line.series}" points="{path}"/>')
        ends.append((points[-1][1], line))
    for y, line in _apart(ends):
        x = _LEFT + inner_width + 8
        parts.append(f'<text class="name t{line.series}" x="{x}" y="{y + 4:.1f}">{escape(line.name)}</text>')
    return "".join([*parts, "</svg>"])


def layer_bars(layers: Sequence[LayerResult]) -> str:
    """Signal-to-noise ratio of each measured matrix's output on the calibration streams, grouped by block.

    Matrices that were measured and then left in the recipe's precision are hollow.
    """
    shown = [(layer, layer.snr_db) for layer in layers if layer.snr_db is not None]
    if not shown:
        return ""
    values = [value for _, value in shown]
    high, low = max(10.0, 10 * math.ceil(max(values) / 10)), min(0.0, 10 * math.floor(min(values) / 10))
    groups = [(name, list(members)) for name, members in groupby(shown, key=lambda bar: _block(bar[0]))]
    width = _BARS_LEFT + sum(len(members) * (_BAR + _GAP) + _BLOCK_GAP for _, members in groups)
    height = _BARS_TOP + _BARS_HEIGHT + _BARS_BOTTOM

    def y_of(value: float) -> float:
        return _BARS_TOP + (high - value) / (high - low) * _BARS_HEIGHT

    parts = [_open(width, height, "bars", "Signal-to-noise ratio of each layer's output, in decibels")]
    for level in range(int(low), int(high) + 1, 10 if high - low <= 50 else 20):
        y = y_of(level)
        parts.append(f'<line class="grid" x1="{_BARS_LEFT}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_BARS_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{level}</text>')
    x = float(_BARS_LEFT + _GAP)
    for name, members in groups:
        middle = x + len(members) * (_BAR + _GAP) / 2
        parts.append(f'<text class="tick" x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{escape(name)}</text>')
        for layer, value in members:
            parts.append(_bar(layer, value, x, y_of(value), y_of(low)))
            x += _BAR + _GAP
        x += _BLOCK_GAP
    return "".join([*parts, "</svg>"])


def layer_kind(layer: LayerResult) -> str:
    """``self`` or ``cross`` attention, ``ffn``, or ``other``: the colour of its bar."""
    for kind, part in (("self", ".self_attn."), ("cross", ".cross_attn."), ("ffn", ".ffn.")):
        if part in layer.name:
            return kind
    return "other"


def _bar(layer: LayerResult, value: float, x: float, top: float, bottom: float) -> str:
    name, kept = layer.name.removesuffix(".weight"), layer.weights == "float"
    what = layer.reason if kept else layer.weights
    style = f"bar k-{layer_kind(layer)}{' kept' if kept else ''}"
    height = max(1.5, bottom - top)
    return (
        f'<rect class="{style}" x="{x:.1f}" y="{bottom - height:.1f}" width="{_BAR}" height="{height:.1f}" rx="1.5">'
        f"<title>{escape(name)}: {value:.1f} dB ({escape(what)})</title></rect>"
    )


def _block(layer: LayerResult) -> str:
    """What a bar stands under: the number of its block, or ``in`` for what comes before the blocks."""
    parts = layer.name.split(".")
    return parts[1] if parts[0] == "blocks" and len(parts) > 1 else "in"


def _open(width: int, height: int, kind: str, label: str) -> str:
    size = f'viewBox="0 0 {width} {height}"'
    fixed = f' style="min-width:{width}px;max-width:{width}px"' if kind == "bars" else ""
    return f'<svg class="{kind}" {size} role="img" aria-label="{escape(label)}"{fixed}>'


def _ticks(seconds: float) -> list[float]:
    step = next((step for step in (0.25, 0.5, 1, 2, 5, 10, 20, 30, 60) if seconds / step <= 7), seconds)
    return [step * number for number in range(int(seconds / step) + 1)]


def _thinned(values: Sequence[float | None]) -> list[float | None]:
    """At most :data:`_POINTS` of the values, each the least of its neighbours, so that dips stay."""
    size = -(-len(values) // _POINTS)
    return [
        min(values[start : start + size], key=lambda value: math.inf if value is None else value)
        for start in range(0, len(values), size)
    ]


def _apart(ends: Sequence[tuple[float, Line]]) -> list[tuple[float, Line]]:
    """Names moved up and down until none covers another, and all are inside the picture."""
    placed: list[tuple[float, Line]] = []
    for y, line in sorted(ends, key=lambda end: end[0]):
        above = placed[-1][0] + _LABEL_HEIGHT if placed else _TOP
        placed.append((max(y, above), line))
    overflow = max(0.0, placed[-1][0] - (_HEIGHT - _BOTTOM)) if placed else 0.0
    return [(y - overflow, line) for y, line in placed]
