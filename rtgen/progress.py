"""How long work reports where it is. The command line draws it; library users may ignore it."""

from typing import Protocol


class Progress(Protocol):
    """Receives progress from any thread. Implementations must return quickly and never raise."""

    def update(self, stage: str, fraction: float | None, detail: str = "") -> None:
        """``stage`` (such as ``engine: denoiser``) is ``fraction`` in 0..1 done; None while that is unknown."""

    def note(self, message: str) -> None:
        """One line that the user should see, such as why a package is being built."""


class SilentProgress:
    """Reports nothing."""

    def update(self, stage: str, fraction: float | None, detail: str = "") -> None:
        pass

    def note(self, message: str) -> None:
        pass
