"""Many clips beside FP16's, clip by clip: the sums that the figures of a report come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from rtgen.fidelity import metrics, perceptual
from rtgen.fidelity.findings import Measured, Reference

if TYPE_CHECKING:
    from rtgen.fidelity.attributes import Answers
    from rtgen.fidelity.metrics import Frames, Values
    from rtgen.fidelity.perceptual import Network

LATE_SECONDS: Final = 5.0
"""Drift is looked for in the last seconds of a clip."""
_NORMAL_95: Final = 1.96


@dataclass(frozen=True)
class Asked:
    """What clips should show, for attribute accuracy: names, and the right class indices [clips, attributes]."""

    names: tuple[str, ...]
    truth: Answers


@dataclass
class Comparison:
    """Clips of one length, in the order of their prompts."""

    frames_per_second: int
    network: Network | None = None
    """LPIPS, where its weights are present."""
    errors: list[Values] = field(default_factory=list)
    _similarities: list[float] = field(default_factory=list)
    _distances: list[float] = field(default_factory=list)
    _colours: list[Values] = field(default_factory=list)
    _details: list[tuple[float, float]] = field(default_factory=list)

    def add(self, candidate: Frames, reference: Frames) -> None:
        """Compare one clip, uint8 [F, H, W, 3], with FP16's of the same prompt and seed."""
        self.errors.append(metrics.squared_errors(candidate, reference))
        self._similarities.append(float(metrics.similarities(candidate, reference).mean()))
        if self.network is not None:
            self._distances.append(float(perceptual.distances(self.network, candidate, reference).mean()))
        late = -round(LATE_SECONDS * self.frames_per_second)
        one, other = candidate[late:], reference[late:]
        self._colours.append(metrics.mean_colour(one) - metrics.mean_colour(other))
        self._details.append((metrics.detail(one), metrics.detail(other)))

    def measured(
        self,
        seconds: float,
        asked: Asked | None = None,
        read: Sequence[Answers] = (),
        reference: Sequence[Answers] = (),
    ) -> Measured:
        """The figures. ``read`` and ``reference``: what the classifier reads in these clips and in FP16's."""
        errors = np.stack(self.errors)
        own, others = np.sum(self._details, axis=0)
        right = None if asked is None else np.stack(read) == asked.truth
        accuracy = None if asked is None or right is None else by_attribute(asked.names, right)
        points = None if asked is None or right is None else Points.of(right, np.stack(reference) == asked.truth)
        return Measured(
            seconds=seconds,
            clips=len(errors),
            psnr_db=decibels(float(errors.mean())),
            clip_psnr_db=tuple(decibels(float(error)) for error in errors.mean(axis=1)),
            frame_psnr_db=tuple(decibels(float(error)) for error in errors.mean(axis=0)),
            ssim=round(float(np.mean(self._similarities)), 5),
            lpips=round(float(np.mean(self._distances)), 5) if self._distances else None,
            attributes=accuracy,
            attribute_accuracy=None if right is None else float(right.mean()),
            attribute_points=None if points is None else points.mean,
            attribute_margin=None if points is None else points.margin,
            colour_shift=round(float(np.linalg.norm(np.mean(self._colours, axis=0))), 4),
            detail_ratio=round(float(own / others), 4) if others else 1.0,
        )


@dataclass(frozen=True)
class Points:
    """How many percentage points more is right in one set of clips than in another, and the margin of that."""

    mean: float
    margin: float | None

    @classmethod
    def of(cls, right: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Points:
        """From right answers [clips, attributes]. Clips are drawn at random, the two of a pair are compared."""
        differences = 100 * (right.mean(axis=1) - reference.mean(axis=1))
        count = len(differences)
        margin = None if count < 2 else _NORMAL_95 * float(differences.std(ddof=1)) / math.sqrt(count)
        return cls(float(differences.mean()), margin)


def reference_figures(seconds: float, asked: Asked | None, read: Sequence[Answers]) -> Reference:
    """What the classifier reads in FP16's own clips."""
    if asked is None:
        return Reference(seconds=seconds, attributes=None, attribute_accuracy=None)
    right = np.stack(read) == asked.truth
    return Reference(
        seconds=seconds, attributes=by_attribute(asked.names, right), attribute_accuracy=float(right.mean())
    )


def by_attribute(names: Sequence[str], right: NDArray[np.bool_]) -> dict[str, float]:
    """The share of right answers [clips, attributes] of each attribute."""
    return {name: float(share) for name, share in zip(names, right.mean(axis=0), strict=True)}


def decibels(mean_squared_error: float) -> float | None:
    """PSNR as the report has it: to hundredths, None for equal pictures."""
    value = metrics.psnr(mean_squared_error)
    return round(value, 2) if math.isfinite(value) else None
