"""Measurements beside their baselines, for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rtgen.cli.table import columns

if TYPE_CHECKING:
    from rtgen.bench.result import Measurement


def measurements_table(results: Sequence["Measurement"]) -> list[str]:
    """Lines of a table."""
    rows = [
        [
            result.name,
            f"{result.value:.4g}",
            result.unit,
            "-" if result.baseline is None else f"{result.baseline:.4g}",
            "-" if result.ratio is None else f"{result.ratio:.2f}x",
            result.note,
        ]
        for result in results
    ]
    return columns(["name", "value", "unit", "baseline", "ratio", "note"], rows)
