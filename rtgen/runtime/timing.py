"""How fast and how evenly a stream runs."""

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

REMEMBERED_CHUNKS: Final = 8192
"""Chunks whose times are kept for the jitter: an hour and more, in constant memory."""


@dataclass
class StageTimes:
    """Seconds that the stages of a stream took; where they overlap, the sum is more than the time that passed."""

    denoise_s: float = 0.0
    decode_s: float = 0.0
    frames: int = 0
    """Frames that were made, before the last chunk is cut."""

    def add(self, denoise_s: float, decode_s: float, frames: int) -> None:
        """Count a chunk."""
        self.denoise_s += denoise_s
        self.decode_s += decode_s
        self.frames += frames

    @property
    def loop_fps(self) -> float | None:
        """Frames a second if denoising were all; None before the first chunk."""
        return self.frames / self.denoise_s if self.denoise_s > 0 else None


@dataclass
class ChunkClock:
    """When chunks come, in seconds after the prompt."""

    first_s: float | None = None
    """When the first one came."""
    _last_s: float = 0.0
    _later_frames: int = 0
    _gaps: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_CHUNKS))

    def tick(self, now_s: float, frames: int) -> None:
        """A chunk of ``frames`` frames is here."""
        if self.first_s is None:
            self.first_s = now_s
        else:
            self._gaps.append(now_s - self._last_s)
            self._later_frames += frames
        self._last_s = now_s

    @property
    def steady_fps(self) -> float | None:
        """Frames a second after the first chunk; None if there was no second one."""
        if self.first_s is None or self._last_s <= self.first_s:
            return None
        return self._later_frames / (self._last_s - self.first_s)

    @property
    def jitter_p95(self) -> float | None:
        """The 95th percentile of the time between chunks over its median; None for fewer than three chunks.

        The smallest time that 95 % of them do not exceed (nearest rank).
        """
        return self._jitter(lambda gaps: gaps[-(-95 * len(gaps) // 100) - 1])

    @property
    def jitter_max(self) -> float | None:
        """The longest time between chunks over the median; None for fewer than three chunks."""
        return self._jitter(lambda gaps: gaps[-1])

    def _jitter(self, pick: Callable[[list[float]], float]) -> float | None:
        if len(self._gaps) < 2:
            return None
        median = statistics.median(self._gaps)
        return pick(sorted(self._gaps)) / median if median > 0 else None
