"""How progress looks: bars on a terminal, throttled lines in a log, nothing when asked to be quiet."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rtgen.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_INTERVAL_S = 10.0
"""A stage writes at most one line in this many seconds to a log, besides its first and last."""


@contextlib.contextmanager
def silence() -> Iterator[Progress]:
    """No display."""
    yield SilentProgress()


@contextlib.contextmanager
def lines(write: Callable[[str], None]) -> Iterator[Progress]:
    """Plain lines through ``write``."""
    yield LineProgress(write)


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """Live bars on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as display:
        yield BarProgress(display)


class BarProgress:
    """One bar a stage."""

    def __init__(self, display: "RichProgress") -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def update(self, stage: str, fraction: float | None, detail: str = "") -> None:
        with contextlib.suppress(Exception):  # a display must not stop the work
            total = None if fraction is None else 1.0
            with self._lock:
                if stage not in self._tasks:
                    self._tasks[stage] = self._display.add_task(stage, total=total, detail=detail)
                task = self._tasks[stage]
            self._display.update(task, total=total, completed=fraction or 0.0, detail=detail)

    def note(self, message: str) -> None:
        with contextlib.suppress(Exception):
            self._display.console.print(message, markup=False, highlight=False)


class LineProgress:
    """A line when a stage starts, one now and then, and one with its duration when it ends."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._started: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()

    def update(self, stage: str, fraction: float | None, detail: str = "") -> None:
        with contextlib.suppress(Exception), self._lock:
            line = self._line(stage, fraction, self._clock())
            if line is not None:
                self._write(f"{line} {detail}".rstrip())

    def note(self, message: str) -> None:
        with contextlib.suppress(Exception):
            self._write(message)

    def _line(self, stage: str, fraction: float | None, now: float) -> str | None:
        if stage in self._ended:
            return None
        first = stage not in self._started
        started = self._started.setdefault(stage, now)
        if fraction is not None and fraction >= 1.0:
            self._ended.add(stage)
            return f"{stage}: done in {now - started:.1f} s"
        if not first and now - self._last[stage] < LINE_INTERVAL_S:
            return None
        self._last[stage] = now
        return f"{stage} …" if fraction is None or first else f"{stage}: {fraction:.0%}"
