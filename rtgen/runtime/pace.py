"""Playing at the model's frame rate: chunks wait for their time, and a late stream sheds passes before frames.

Frame i of a stream is due at the time of the first frame plus i / (frames a second). A chunk that comes early waits.
While chunks come late, the error budget of adaptive steps (``rtgen.runtime.adaptive``) rises step by step to
:data:`MOST_BUDGET`, and late frames are still shown. Where even chunks made under the highest budget do not catch up,
frames whose time has passed are dropped. A chunk of which no frame is left moves the schedule instead, which is a
pause: a model that cannot hold the rate would show nothing otherwise. The budget falls again, step by step, when
:data:`CALM_CHUNKS` chunks in a row have had time to spare.
"""

import time
from collections.abc import Callable
from typing import Final

MOST_BUDGET: Final = 0.2
"""Root mean square error of a chunk, in latent units: from there on hardly another pass can be left out
(docs/run.md#fewer-passes-where-little-changes)."""

CALM_CHUNKS: Final = 8

_LEAST_RISE: Final = MOST_BUDGET / 8
_IN_THE_MAKING: Final = 2
"""Chunks that a new budget may come too late for: the one that is released, and one made ahead."""
_WAIT_SECONDS: Final = 0.1
"""Longest sleep at a time: on Windows Ctrl-C arrives between sleeps."""


class RealTime:
    """The schedule of one stream."""

    def __init__(
        self,
        frames_per_second: float,
        budget: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``budget``: the error budget while the stream is on time. ``clock`` and ``sleep`` are in seconds."""
        self._rate, self._least = frames_per_second, budget
        self._most = max(MOST_BUDGET, budget)
        self._clock, self._sleep = clock, sleep
        self._origin: float | None = None  # when the first frame was due
        self._frames = 0
        self._late_s = 0.0  # of the chunk before
        self._at_most = 0  # chunks in a row that were released under the highest budget
        self._calm = 0  # chunks in a row with time to spare
        self.budget = budget
        """What the next chunk is to be made with."""
        self.dropped_frames = 0
        self.paused_s = 0.0
        """How far the schedule was moved."""

    def release(self, frames: int) -> int:
        """Wait until a chunk of ``frames`` frames is due, and return how many of its first frames are to be dropped."""
        now = self._clock()
        if self._origin is None:
            self._origin = now
        late_s = now - self._origin - self._frames / self._rate
        self._at_most = self._at_most + 1 if self.budget >= self._most else 0
        dropped = self._dropped(late_s, frames)
        self._late_s = now - self._origin - self._frames / self._rate
        self._steer(late_s, frames)
        self._frames += frames
        self._wait(now - late_s)
        return dropped

    def _dropped(self, late_s: float, frames: int) -> int:
        late_frames = int(late_s * self._rate + 1e-6)  # a frame's time has passed when the next one's has come
        if late_frames < 1 or self._at_most < _IN_THE_MAKING or late_s < self._late_s:
            return 0
        if late_frames >= frames:
            assert self._origin is not None
            self._origin += late_s
            self.paused_s += late_s
            return 0
        self.dropped_frames += late_frames
        return late_frames

    def _steer(self, late_s: float, frames: int) -> None:
        rise = self.budget - self._least
        if late_s * self._rate >= frames / 2:
            self.budget = self._most
        elif late_s * self._rate >= 1:
            self.budget = min(self._most, self._least + max(_LEAST_RISE, 2 * rise))
        self._calm = self._calm + 1 if late_s * self._rate < -frames / 4 else 0
        if self._calm == CALM_CHUNKS:
            self._calm = 0
            self.budget = self._least + (rise / 2 if rise / 2 >= _LEAST_RISE / 2 else 0.0)

    def _wait(self, due: float) -> None:
        while (left := due - self._clock()) > 0:
            self._sleep(min(left, _WAIT_SECONDS))
