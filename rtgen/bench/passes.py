"""How long single passes of a denoiser take, watched between the pipeline and a backend."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtgen.engine.manifest import ComponentEntry
    from rtgen.runtime.session import Array, Backend, Session


class PassTimes:
    """Seconds of each pass, waited for, while ``enabled``."""

    def __init__(self) -> None:
        self.enabled = False
        self.denoise_s: list[float] = []
        self.clean_s: list[float] = []

    def forget(self) -> None:
        """Begin anew."""
        self.denoise_s, self.clean_s = [], []


class WatchedBackend:
    """A backend whose denoiser's passes are timed. Unless ``times.enabled`` it only hands calls on."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.device, self.times = backend.name, backend.device, PassTimes()
        self._backend = backend
        if hasattr(backend, "overlaps"):
            self.overlaps: bool = backend.overlaps

    def open(self, component: str) -> WatchedSession:
        return WatchedSession(self._backend.open(component), self.times if component == "denoiser" else None)

    def close(self) -> None:
        self._backend.close()


class WatchedSession:
    """A session, and who wants to know how long its runs take."""

    def __init__(self, session: Session, times: PassTimes | None) -> None:
        self.component: ComponentEntry = session.component
        self._session, self._times = session, times
        self._is_clean = False

    def allocate(self, sizes: Mapping[str, int]) -> None:
        self._session.allocate(sizes)

    def write(self, name: str, value: Array) -> None:
        if name == "sigma":
            self._is_clean = float(value[0]) == 0.0
        self._session.write(name, value)

    def copy(self, name: str, source: Session, source_name: str) -> None:
        # Backends copy between sessions of their own.
        self._session.copy(name, source._session if isinstance(source, WatchedSession) else source, source_name)

    def run(self) -> None:
        if self._times is None or not self._times.enabled:
            self._session.run()
            return
        start = time.perf_counter()
        self._session.run()
        self._session.read("change")  # a single number, and it waits for the pass
        seconds = time.perf_counter() - start
        (self._times.clean_s if self._is_clean else self._times.denoise_s).append(seconds)

    def read(self, name: str) -> Array:
        return self._session.read(name)

    def reset(self) -> None:
        self._session.reset()

    def close(self) -> None:
        self._session.close()
