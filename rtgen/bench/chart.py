"""Measurements beside their baselines, as an SVG that stands on its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil
from typing import Final

from rtgen.bench.result import Measurement

_WIDTH: Final = 880
_NAMES: Final = 420
_VALUES: Final = 200
_ROW: Final = 26
_TOP: Final = 34
_STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.v{fill:#57606a}.bar{fill:#2f81f7}.slow{fill:#bf8700}"
    ".even{stroke:#57606a;stroke-dasharray:4 3}.back{fill:#fff}"
)


def ratios(results: Sequence[Measurement], title: str) -> str | None:
    """A bar for each measurement with a ratio: how many times better than its baseline; None if there are none."""
    shown = [(result, result.ratio) for result in results if result.ratio is not None]
    if not shown:
        return None
    most = max(1.5, *(ratio for _, ratio in shown))
    scale = (_WIDTH - _NAMES - _VALUES) / (ceil(most * 2) / 2)
    height = _TOP + _ROW * len(shown) + 10
    even = _NAMES + scale
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{_STYLE}</style>',
        f'<rect class="back" width="{_WIDTH}" height="{height}"/>',
        f'<text x="{even:.1f}" y="20" text-anchor="middle" class="v">baseline</text>',
    ]
    for number, (result, ratio) in enumerate(shown):
        parts += _bar(result, ratio, _TOP + number * _ROW, ratio * scale)
    parts.append(f'<line class="even" x1="{even:.1f}" x2="{even:.1f}" y1="26" y2="{height - 6}"/>')
    return "".join([*parts, "</svg>\n"])


def _bar(result: Measurement, ratio: float, top: int, length: float) -> list[str]:
    kind, middle = ("bar" if ratio >= 1 else "slow"), top + 15
    value = f"{ratio:.2f}×  ({result.value:.3g} {result.unit})"
    return [
        f'<text x="{_NAMES - 8}" y="{middle}" text-anchor="end">{escape(result.name)}</text>',
        f'<rect class="{kind}" x="{_NAMES}" y="{top + 3}" width="{length:.1f}" height="{_ROW - 9}" rx="2"/>',
        f'<text class="v" x="{_NAMES + length + 8:.1f}" y="{middle}">{escape(value)}</text>',
    ]
