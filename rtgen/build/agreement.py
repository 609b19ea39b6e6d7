"""How far two computations of one tensor may lie apart, judged with Polygraphy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from rtgen.errors import MissingDependencyError

if TYPE_CHECKING:
    from rtgen.engine.manifest import Manifest
    from rtgen.runtime.session import Array

Precision = Literal["float16", "float32"]

RELATIVE: Final[Mapping[Precision, float]] = {"float32": 1e-3, "float16": 2e-2}
"""Greatest difference, as a share of the reference tensor's greatest magnitude, by what the package computes in.

Single elements near zero may be off by any factor, so the tensor's magnitude is the measure and not the element's.
"""

FRAME_MEAN: Final = 2.0
FRAME_LEVELS: Final = 16.0
FRAME_SHARE: Final = 0.999
"""8-bit frames: the mean difference in levels, and the levels that all but one value in a thousand stay within."""


CODED_MEAN: Final = 1e-2
"""Keys and values in codes: the mean difference, as a share of the greatest magnitude. A number at the edge between two
codes may fall on either side, which moves it by a whole step."""

ROUNDED_MEAN: Final = 2e-2
"""The same of everything that passes through layers whose inputs become codes: every later layer sees the step, too."""


@dataclass(frozen=True)
class Agreement:
    """The outcome for one tensor. ``max_rel`` is ``max_abs`` over the reference's greatest magnitude."""

    max_abs: float
    max_rel: float
    passed: bool

    def worst(self, other: Agreement) -> Agreement:
        """Both outcomes in one: the greater differences, passed if both are. NaN counts as the greatest."""
        return Agreement(
            float(np.maximum(self.max_abs, other.max_abs)),
            float(np.maximum(self.max_rel, other.max_rel)),
            self.passed and other.passed,
        )


def precision_of(manifest: Manifest) -> Precision:
    """What a package computes in. Inputs and outputs of half precision graphs are float32; their states are not."""
    tensors = (
        tensor for component in manifest.components.values() for tensor in (*component.inputs, *component.outputs)
    )
    return "float16" if any(tensor.dtype == "float16" for tensor in tensors) else "float32"


def require_polygraphy() -> None:
    """Raise MissingDependencyError unless Polygraphy is installed, in a version with the comparisons used here."""
    try:
        from polygraphy.comparator import SimpleCompareFunc  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "comparing needs Polygraphy 0.53 or newer, which is not installed", hint='pip install "rtgen[compile]"'
        ) from error


def compare(
    name: str, candidate: Array, reference: Array, precision: Precision, mean: float | None = None
) -> Agreement:
    """Judge ``candidate`` against ``reference``, two arrays of one shape and dtype.

    uint8 arrays are frames. Of others the mean difference may be ``mean`` of the greatest magnitude, if that is given
    (such as :data:`CODED_MEAN`), or they are held to :data:`RELATIVE`. A NaN or an infinity in either fails.
    """
    from polygraphy.comparator import IterationResult
    from polygraphy.logger import G_LOGGER

    frames = reference.dtype == np.uint8
    if frames:  # Polygraphy divides by the reference, and only floating-point zeros are safe there
        candidate, reference = candidate.astype(np.float32), reference.astype(np.float32)
    magnitude = float(np.max(np.abs(reference), initial=0.0))
    relative = _relative_check(RELATIVE[precision] * magnitude) if mean is None else _mean_check(mean * magnitude)
    checks = _frame_checks() if frames else relative
    ours = IterationResult({name: candidate}, runner_name="package")
    theirs = IterationResult({name: reference}, runner_name="onnxruntime")
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(all="ignore"):
        results = [check(ours, theirs)[name] for check in checks]
    max_abs = float(results[0].max_absdiff)
    # An infinite reference would allow any difference.
    passed = math.isfinite(magnitude) and all(map(bool, results))
    return Agreement(max_abs, max_abs / magnitude if magnitude else max_abs, passed)


def _relative_check(limit: float) -> list[Any]:
    from polygraphy.comparator import SimpleCompareFunc

    return [SimpleCompareFunc(check_error_stat="max", atol=limit, rtol=0.0)]


def _mean_check(limit: float) -> list[Any]:
    from polygraphy.comparator import SimpleCompareFunc

    return [SimpleCompareFunc(check_error_stat="mean", atol=limit, rtol=0.0)]


def _frame_checks() -> list[Any]:
    from polygraphy.comparator import SimpleCompareFunc

    return [
        *_mean_check(FRAME_MEAN),
        SimpleCompareFunc(check_error_stat="quantile", error_quantile=FRAME_SHARE, atol=FRAME_LEVELS, rtol=0.0),
    ]
