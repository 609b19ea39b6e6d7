"""Which optimization profile of a package serves a frame size."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from rtgen.engine.manifest import ProfileEntry, Size
from rtgen.errors import SizeError


class SizeRange(Protocol):
    """What optimization profiles have in common."""

    @property
    def min(self) -> Size: ...

    @property
    def max(self) -> Size: ...


def choose_profile(profiles: Sequence[ProfileEntry], sizes: Mapping[str, int], size_step: Size) -> int:
    """The index of the profile for these sizes, best one that is tuned for exactly them.

    ``sizes`` holds ``rows`` and ``columns``, the token grid; sizes without them depend on no frame size and get
    profile 0. Raises SizeError when no profile serves them.
    """
    if "rows" not in sizes or "columns" not in sizes:
        return 0
    size = (sizes["rows"] * size_step[0], sizes["columns"] * size_step[1])
    serving = [index for index, profile in enumerate(profiles) if serves(profile, size)]
    if not serving:
        ranges = " or ".join(f"{_text(profile.min)} to {_text(profile.max)}" for profile in profiles)
        raise SizeError(f"the package does not serve {_text(size)}", hint=f"it serves {ranges} (height x width)")
    return next((index for index in serving if profiles[index].opt == size), serving[0])


def serves(profile: SizeRange, size: Size) -> bool:
    """Whether a profile, of a package or of a model config, includes a frame size (height, width)."""
    return all(low <= value <= high for low, value, high in zip(profile.min, size, profile.max, strict=True))


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
