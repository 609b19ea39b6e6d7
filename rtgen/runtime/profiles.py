"""Which optimization profile of a package serves a frame size."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from rtgen.engine.manifest import Size
from rtgen.errors import SizeError


class SizeRange(Protocol):
    """What the optimization profiles of packages and of model configs have in common."""

    @property
    def min(self) -> Size: ...

    @property
    def opt(self) -> Size: ...

    @property
    def max(self) -> Size: ...


def choose_profile(profiles: Sequence[SizeRange], sizes: Mapping[str, int], size_step: Size) -> int:
    """The index of the profile for these sizes.

    Of the profiles that serve them, the one that is tuned for the nearest size (by the ratios of heights and widths),
    of several the one that reaches least high, then the first. ``sizes`` holds ``rows`` and ``columns``, the token
    grid; sizes without them depend on no frame size and get profile 0. Raises SizeError when no profile serves them.
    """
    if "rows" not in sizes or "columns" not in sizes:
        return 0
    size = (sizes["rows"] * size_step[0], sizes["columns"] * size_step[1])
    serving = [index for index, profile in enumerate(profiles) if serves(profile, size)]
    if not serving:
        ranges = served_ranges(profiles)
        raise SizeError(f"the package does not serve {_text(size)}", hint=f"it serves {ranges} (height x width)")
    return min(serving, key=lambda index: (_distance(profiles[index].opt, size), pixels(profiles[index].max)))


def serves(profile: SizeRange, size: Size) -> bool:
    """Whether a profile includes a frame size (height, width)."""
    return all(low <= value <= high for low, value, high in zip(profile.min, size, profile.max, strict=True))


def serve_all(profiles: Sequence[SizeRange], sizes: Iterable[Size]) -> bool:
    """Whether each of ``sizes`` (height, width) is included by some profile."""
    return all(any(serves(profile, size) for profile in profiles) for size in sizes)


def served_ranges(profiles: Sequence[SizeRange]) -> str:
    """For people: the sizes that profiles serve, without those that lie within another."""
    ranges = dict.fromkeys((profile.min, profile.max) for profile in profiles)
    widest = [
        (low, high)
        for low, high in ranges
        if not any((low, high) != other and _within(low, high, other) for other in ranges)
    ]
    return " or ".join(_text(low) if low == high else f"{_text(low)} to {_text(high)}" for low, high in widest)


def pixels(size: Size) -> int:
    """Pixels of a frame."""
    return size[0] * size[1]


def _within(low: Size, high: Size, other: tuple[Size, Size]) -> bool:
    return all(a <= b for a, b in zip((*other[0], *high), (*low, *other[1]), strict=True))


def _distance(size: Size, other: Size) -> float:
    """How far apart two sizes are: 0 only for equal ones."""
    return sum(abs(math.log(a / b)) for a, b in zip(size, other, strict=True))


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
