"""Small pieces of the page's text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rtgen.fidelity.findings import FidelityReport, Verdict

SERIES: Final = 8
"""Colours in the style sheet; more recipes than that share them."""


def series(number: int) -> int:
    """The colour of recipe ``number``, from 1."""
    return number % SERIES + 1


def reference_name(report: FidelityReport) -> str:
    """What the recipes are compared with."""
    return "FP16" if report.precision == "float16" else "FP32"


def mark(verdict: Verdict | None) -> str:
    """Reached, not reached or not measured, as a sign that reads without colour; nothing without a target."""
    if verdict is None:
        return ""
    kind, sign, words = {
        True: ("good", "✓", "reached"),
        False: ("bad", "✗", "not reached"),
        None: ("none", "–", "not measured"),
    }[verdict.reached]
    title = escape(f"{verdict.name}: {verdict.measured}, wanted {verdict.wanted}")
    return f'<span class="mark {kind}" title="{title}">{sign}<span class="hidden"> {words}</span></span>'


def reached_text(verdicts: Sequence[Verdict]) -> str:
    """How many figures are reached, in a sentence."""
    reached = sum(verdict.reached is True for verdict in verdicts)
    missed = sum(verdict.reached is False for verdict in verdicts)
    open_ones = len(verdicts) - reached - missed
    if not verdicts:
        return "No recipe has figures to reach."
    parts = [f"{reached} of {plural(reached + missed, 'measured figure')} reached" if reached + missed else ""]
    parts.append(f"{plural(open_ones, 'figure')} not measured" if open_ones else "")
    return "; ".join(part for part in parts if part) + "."


def plural(count: int, noun: str) -> str:
    """``1 clip``, ``8 clips``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def megabytes(count: int) -> str:
    """A size in millions of bytes."""
    return f"{count / 1e6:.1f} MB"
