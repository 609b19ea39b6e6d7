"""What a measurement is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """One figure, and beside it that of the baseline in the same run."""

    name: str
    """What is measured, with its sizes."""
    value: float
    unit: str
    baseline: float | None
    """The same of what it is compared with, in the same unit."""
    ratio: float | None
    """How many times better than the baseline: above 1 is better, whether the unit is a time or a rate."""
    note: str = ""
    """What the baseline is, or what else a reader must know."""
