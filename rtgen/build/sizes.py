"""From the frame sizes that a user asks for to the profiles of a package, and back."""

from __future__ import annotations

from collections.abc import Sequence

from rtgen.config.model import ModelConfig, ResolutionProfile, Size
from rtgen.errors import SizeError
from rtgen.runtime.profiles import SizeRange, pixels

LARGEST_SIDE = 4096
"""Pixels; a larger frame is a slip of the finger."""


def check_size(model: ModelConfig, size: Size) -> None:
    """Raise SizeError unless the model can make frames of a size."""
    step = model.size_step
    if any(side % unit or not unit * 2 <= side <= LARGEST_SIDE for side, unit in zip(size, step, strict=True)):
        near = tuple(
            min(max(round(side / unit), 2) * unit, LARGEST_SIDE) for side, unit in zip(size, step, strict=True)
        )
        raise SizeError(
            f"{model.name} cannot make frames of {size[0]}x{size[1]}: height and width are multiples of "
            f"{step[0]} and {step[1]} pixels, from {2 * step[0]}x{2 * step[1]} to {LARGEST_SIDE}x{LARGEST_SIDE}",
            hint=f"--size {near[0]}x{near[1]} is near",
        )


def requested_profiles(model: ModelConfig, sizes: Sequence[Size]) -> tuple[ResolutionProfile, ...]:
    """A profile for each size that was asked for, the least first; the model's own when none was.

    A size's profile reaches down to the smaller sizes that were asked for, so that those in between are served too.
    It reaches no higher than the size itself: what a package takes of memory is decided by its greatest size alone.
    Raises SizeError unless the model can make frames of all.
    """
    for size in sizes:
        check_size(model, size)
    if not sizes:
        return model.resolution.profiles
    ordered = sorted(set(sizes), key=lambda size: (pixels(size), size))
    return tuple(ResolutionProfile(min=_least_within(ordered, size), opt=size, max=size) for size in ordered)


def _least_within(sizes: Sequence[Size], size: Size) -> Size:
    """The least height and width of the sizes that fit into ``size``, which is one of them."""
    inside = [(height, width) for height, width in sizes if height <= size[0] and width <= size[1]]
    return min(height for height, _ in inside), min(width for _, width in inside)


def fewer_sizes(model: ModelConfig) -> list[tuple[Size, ...]]:
    """What to ask for in place of the model's own profiles: all but the greatest sizes first, then less and less."""
    tuned = [profile.opt for profile in model.resolution.profiles]
    greatest = max(pixels(profile.max) for profile in model.resolution.profiles)
    steps = sorted({pixels(size) for size in tuned if pixels(size) < greatest}, reverse=True)
    return [tuple(size for size in tuned if pixels(size) <= step) for step in steps]


def sizes_of(model: ModelConfig, profiles: Sequence[SizeRange]) -> tuple[Size, ...]:
    """What to ask for to get these profiles, of a package, again: none for the model's own."""
    own = [(profile.min, profile.opt, profile.max) for profile in model.resolution.profiles]
    is_own = [(profile.min, profile.opt, profile.max) for profile in profiles] == own
    return () if is_own else tuple(profile.max for profile in profiles)
