"""Adaptive steps: the denoise passes that a chunk can do without.

A chunk runs through the noise levels of the schedule. Where the estimate x0 hardly moves from pass to pass, levels in
the middle can be left out: the sampler goes on from the estimate it has, straight to a later level. The first level
and the last one always run, and so does the clean pass. (Stopping early instead of leaving levels out is far worse: an
estimate from a high noise level is an average of what might come, and the last level sharpens it.)

What leaving out levels a+1 .. b-1 does to the input of the pass at level b follows from the sampler alone. With
c_i = |x0_i - x0_{i-1}|, the root mean square that a pass reports as its ``change``, for changes in one direction:

``euler``    the velocities of the levels between would differ from v_a by the sum of c_i / sigma_i, since
             x0_i - x0_{i-1} = -sigma_i (v_i - v_{i-1}); each acts over sigma_i - sigma_{i+1}
``renoise``  x = (1 - sigma_b) x0 + sigma_b noise would hold x0_{b-1} instead of x0_a

Changes that have not been seen are taken as proportional to the way in sigma, at the rate of the latest change of this
chunk; before its second pass, at the rate over the whole of the chunk before, times :data:`CAUTION`. A chunk of which
neither is known (the first of a stream, the first under a new prompt) runs its second pass.

How well that predicts is measured by ``scripts/adaptive_steps.py``; docs/run.md has the figures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rtgen.errors import UsageError

Sampler = Literal["renoise", "euler"]

CAUTION: Final = 1.5
"""The chunk before says less than the one itself, and coarse steps see a shorter way of x0 than fine ones."""


def checked_budget(budget: float) -> float:
    """The error budget, 0 or a positive number. Raises UsageError."""
    if not 0.0 <= budget < math.inf:
        raise UsageError(
            f"the error budget must be 0 or more, not {budget:g}", hint="such as 0.05; 0 runs every denoise pass"
        )
    return budget


@dataclass
class PassCount:
    """Denoise passes of a stream so far; clean passes are not counted."""

    levels: int
    """Passes of a chunk with fixed steps."""
    chunks: int = 0
    passes: int = 0

    @property
    def average(self) -> float:
        """Denoise passes of a chunk, on average; ``levels`` before the first chunk."""
        return self.passes / self.chunks if self.chunks else float(self.levels)

    @property
    def saved(self) -> float:
        """Share of the denoise passes that were left out, 0 .. 1."""
        return 1.0 - self.average / self.levels


class AdaptiveSteps:
    """Chooses the noise levels of chunk after chunk, so that the predicted error of each stays within ``budget``.

    The error is the root mean square of the difference, in latent units, between a chunk and what every pass would
    have made of it, given the same chunks before. Equal changes lead to equal choices. Another ``budget`` holds
    from the next chunk on.
    """

    def __init__(self, sigmas: Sequence[float], sampler: Sampler, budget: float) -> None:
        """``sigmas`` are the levels, descending from 1 to above 0. Raises UsageError for an impossible budget."""
        self._sigmas, self._sampler, self.budget = tuple(sigmas), sampler, checked_budget(budget)
        self._last = len(self._sigmas) - 1
        self._record: float | None = None
        """Change of x0 for a unit of sigma, over the whole of the last chunk."""
        self._rate: float | None = None
        self._level, self._travelled, self._left = 0, 0.0, 0.0

    def forget(self) -> None:
        """The next chunk is unlike the one before: its prompt has changed."""
        self._record = None

    def after(self, level: int, change: float | None) -> int:
        """The level of the next pass once the one at ``level`` has run; the number of levels when the chunk is done.

        ``change`` is the root mean square change of x0 since the pass before, in latent units, and None after a
        chunk's first pass, which has none before it.
        """
        if change is None:
            self._rate = None if self._record is None else CAUTION * self._record
            self._travelled, self._left = 0.0, self.budget
        else:
            self._rate = change / (self._sigmas[self._level] - self._sigmas[level])
            self._travelled += change
        self._level = level
        if level < self._last:
            return self._next(level)
        if self._last:
            self._record = self._travelled / (self._sigmas[0] - self._sigmas[level])
        return level + 1

    def _next(self, level: int) -> int:
        if self._rate is None:
            return level + 1
        for farther in range(self._last, level + 1, -1):
            error = self._rate * skip_error(self._sigmas, self._sampler, level, farther)
            if error <= self._left:  # false for NaN: a broken estimate saves nothing
                self._left -= error
                return farther
        return level + 1


def skip_error(sigmas: Sequence[float], sampler: Sampler, level: int, following: int) -> float:
    """Predicted error of going from ``level`` straight to ``following``, for x0 that moves by 1 for a unit of sigma.

    In units of x0; see the formulas above. 0 when no level lies between.
    """
    if sampler == "renoise":
        return (1.0 - sigmas[following]) * (sigmas[level] - sigmas[following - 1])
    error = velocity = 0.0
    for left_out in range(level + 1, following):
        higher, sigma, lower = sigmas[left_out - 1 : left_out + 2]
        velocity += (higher - sigma) / sigma
        error += velocity * (sigma - lower)
    return error
