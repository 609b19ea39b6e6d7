"""The progress of a TensorRT build as one number."""

from collections.abc import Mapping
from dataclasses import dataclass

# Measured on tensorrt_rtx 1.7 with 300 million parameters: nearly all the time goes by in the fifth of six steps, and
# there in one phase. Names that another version does not use only make its bar less even.
_STEP_WEIGHTS: Mapping[str, tuple[int, ...]] = {"Building engine": (1, 1, 1, 1, 60, 1)}
_SHARES: Mapping[str, float] = {
    "Optimizing graph": 0.05,
    "Computing profile costs": 0.95,
    "Building engine from subgraph": 0.95,
}
_DEFAULT_SHARE = 0.5


@dataclass
class _Phase:
    name: str
    steps: int
    done: int = 0
    inside: float = 0.0
    """How much of the current step the phases that opened and closed in it have taken."""

    @property
    def share(self) -> float:
        """The part of what is left of its parent's step that this phase takes."""
        return _SHARES.get(self.name, _DEFAULT_SHARE)

    def reached(self, done: int) -> float:
        """The fraction of the phase that lies before step ``done``."""
        weights = _STEP_WEIGHTS.get(self.name, ())
        if len(weights) == self.steps:
            return sum(weights[:done]) / sum(weights)
        return min(done / self.steps, 1.0)


class PhaseProgress:
    """Turns TensorRT's nested phases into one fraction that never falls.

    A phase spreads its share over its steps. How many phases a step will open is not told in advance, so each takes a
    part of what is left of the step, by default half. Not thread-safe.
    """

    def __init__(self) -> None:
        self._open: list[_Phase] = []
        self._fraction = 0.0

    def start(self, phase: str, steps: int) -> float:
        """A phase opens inside the innermost open one. This and the others return the fraction, 0..1."""
        self._open.append(_Phase(phase, max(steps, 1)))
        return self._update()

    def step(self, phase: str) -> float:
        """A step of an open phase is done."""
        for entry in self._open:
            if entry.name == phase:
                entry.done, entry.inside = entry.done + 1, 0.0
        return self._update()

    def finish(self, phase: str) -> float:
        """A phase closes, and with it whatever is open inside it. The outermost one ends the build."""
        index = next((i for i in reversed(range(len(self._open))) if self._open[i].name == phase), None)
        if index is None:
            return self._fraction
        closed = self._open[index]
        del self._open[index:]
        if not self._open:
            self._fraction = 1.0
        else:
            parent = self._open[-1]
            parent.inside += (1 - parent.inside) * closed.share
        return self._update()

    @property
    def detail(self) -> str:
        """The innermost phase but two levels deep at most: those below change too quickly to read."""
        return self._open[min(2, len(self._open) - 1)].name if self._open else ""

    def _update(self) -> float:
        start, share = 0.0, 1.0
        for number, phase in enumerate(self._open):
            share *= phase.share if number else 1.0
            low, high = phase.reached(phase.done), phase.reached(phase.done + 1)
            start += share * (low + (high - low) * phase.inside)
            share *= (high - low) * (1 - phase.inside)
        self._fraction = max(self._fraction, min(start, 1.0))
        return self._fraction
